"""``rlms``, by its own README; the arguments are the environment and, for ``docker``, the image."""

from __future__ import annotations

import sys

from rlm import RLM

from tests.bench.peers.drivers import loop


def run(task: loop.Task) -> str:
    environment, *image = sys.argv[1:]
    endpoint = {"base_url": f"{task.url}/v1", "api_key": "none"}
    rlm = RLM(
        backend="openai",
        backend_kwargs={"model_name": "root", **endpoint},
        other_backends=["openai"],
        other_backend_kwargs=[{"model_name": "sub", **endpoint}],
        environment=environment,
        environment_kwargs={"image": image[0]} if image else {},
    )
    return str(rlm.completion(task.context, root_prompt=loop.QUERY).response)


if __name__ == "__main__":
    loop.serve(run)
