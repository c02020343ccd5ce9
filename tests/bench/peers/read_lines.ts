export async function* readLines(reader: { read(p: Uint8Array): Promise<number | null> }): AsyncGenerator<string> {
  const decoder = new TextDecoder();
  const buffer = new Uint8Array(1 << 16);
  let parts: string[] = [];
  for (let n; (n = await reader.read(buffer)) !== null;) {
    const lines = decoder.decode(buffer.subarray(0, n), { stream: true }).split("\n");
    for (const line of lines.slice(0, -1)) {
      yield parts.join("") + line;
      parts = [];
    }
    parts.push(lines[lines.length - 1]);
  }
}
