"""The promises that hold by how the software is made, and the known controls that it does not make."""

from __future__ import annotations

from orchestrator.sandbox.controls import Control

# There is nothing to be read back of a box; tests hold them.
BY_DESIGN: tuple[Control, ...] = (
    Control(
        id="H5",
        what="no file of the image is setuid or setgid",
        sets="`Dockerfile.sandbox`",
        stops="privileged programs, were H4 to fail",
    ),
    Control(
        id="H21",
        what="the native architecture's system calls alone",
        sets="`seccomp.json`: no `subArchitectures`",
        stops="the tables of x32 and i386, `socketcall`",
    ),
    Control(
        id="H30",
        what="versions with a published way out are named",
        sets="`rlm-sandbox doctor`, from `orchestrator/sandbox/floors.py`",
        stops="known bugs of kernel, runtime and engine",
    ),
    Control(
        id="H32",
        what="every box is read back before model code runs, from the engine and from inside",
        sets="`orchestrator/sandbox/controls.py`, `sandbox_image/attest.py`",
        stops="flags that an engine dropped in silence",
    ),
    Control(
        id="H33",
        what="the host's own knobs are read and judged",
        sets="`rlm-sandbox doctor`",
        stops="a host that makes a kernel's bug easier to use",
    ),
    Control(
        id="P2",
        what="identity is the connection; the box holds no token",
        sets="one stream a box",
        stops="stolen credentials, one box speaking for another",
    ),
    Control(
        id="P3",
        what="a frame's length is refused before anything is kept of it",
        sets="`sandbox_image/wire.py`",
        stops="huge frames",
    ),
    Control(
        id="P4",
        what="strict decoding: a closed set of shapes, bounded depth, no NaN, no huge numbers",
        sets="`sandbox_image/wire.py`, `orchestrator/kernel/outputs.py`, `orchestrator/broker_params.py`",
        stops="malformed input",
    ),
    Control(
        id="P5",
        what="nothing that comes out of a box raises out of its client; what cannot be a frame ends the box",
        sets="`orchestrator/transport/mux.py`",
        stops="a host brought down by one message",
    ),
    Control(
        id="P6",
        what="no pickle, no name resolved that came from a box",
        sets="JSON alone",
        stops="code run on the host",
    ),
    Control(
        id="P7",
        what="the end of a cell is testimony; deadlines run on the host's clock",
        sets="`orchestrator/kernel/client.py`",
        stops="forged and missing ends",
    ),
    Control(
        id="P8",
        what="`Final` is a call of its own, bound to the open cell and sized; nothing printed can end a run",
        sets="`orchestrator/broker_cell.py`",
        stops="forged answers",
    ),
    Control(
        id="P9",
        what="no standard input: a cell cannot ask the operator",
        sets="`allow_stdin` false; the channel is not carried",
        stops="phishing at the terminal",
    ),
    Control(
        id="P10",
        what="payloads, comms and display updates are dropped",
        sets="`sandbox_image/gate.py`, `orchestrator/kernel/outputs.py`",
        stops="the box commanding its front end",
    ),
    Control(
        id="P11",
        what="rich results leave as text/plain alone",
        sets="`sandbox_image/gate.py`",
        stops="scripts and image bombs in a viewer",
    ),
    Control(
        id="P12",
        what="control characters do not reach a terminal or the journal's readers",
        sets="`orchestrator/text.py`",
        stops="spoofed terminals, clipboard writes, hidden text",
    ),
    Control(
        id="P13",
        what="output is cut at its source, and again on the host",
        sets="`limits.output_kb`",
        stops="floods",
    ),
    Control(
        id="P14",
        what="calls: a list of methods, ids once each, bound to the open cell",
        sets="`orchestrator/broker.py`",
        stops="replay, late and foreign calls",
    ),
    Control(
        id="P15",
        what="reserve the worst case before a call, settle the truth after it; one ledger for the tree",
        sets="`orchestrator/ledger.py`",
        stops="overspending by races and children",
    ),
    Control(
        id="P16",
        what="calls under way are bounded, in number and bytes; what comes beyond that is refused, and none of it kept",
        sets="`models.in_flight`",
        stops="call floods",
    ),
    Control(
        id="P17",
        what="a cell's deadline does not depend on what the box sends, or stops sending",
        sets="`orchestrator/kernel/client.py`",
        stops="frames that never end",
    ),
    Control(
        id="P18",
        what="what goes in of a failure is a code and a short text",
        sets="`orchestrator/broker.py`",
        stops="paths, keys and model names leaking inward",
    ),
    Control(
        id="P19",
        what="a sub-model's reply is a string and never executed",
        sets="`sandbox_image/guest_api.py`",
        stops="injection through recursion",
    ),
    Control(
        id="P22",
        what="a box serves one run and is destroyed",
        sets="`orchestrator/session.py`",
        stops="residue for the next run",
    ),
    Control(
        id="P23",
        what="no box outlives its owner",
        sets="end of the stream; labels, by which a sweep beside each process's first box knows what an owner left",
        stops="orphans",
    ),
    Control(
        id="P24",
        what="removal is bounded in time, and verified",
        sets="`orchestrator/sandbox/container.py`",
        stops="an engine that hangs",
    ),
    Control(
        id="P25",
        what="a run is a journal, written before it takes effect",
        sets="`orchestrator/trajectory/journal.py`",
        stops="a past that cannot be told",
    ),
)

# Known controls that are not made, and why.
NOT_MADE: dict[str, str] = {
    "H14 (memory.oom.group)": "Docker cannot set it. The box's kernel makes itself the first victim instead, and the "
    "supervisor ends what is left.",
    "H34": "Core scheduling and SMT are the host's to set, for all that runs there; `doctor` says whether SMT is on.",
    "P21": "There is no channel for files: what leaves a box is output, calls and `Final`, all of them text.",
}
