"""``rlm-harness`` with its container interpreter; the argument is the image."""

from __future__ import annotations

import sys

from rlm_harness import RLMConfig, RLMTask, configure
from rlm_harness.config import ContainerConfig

from tests.bench.peers.drivers import loop

CALLS = 1000  # its default is 30


class Answer(RLMTask):  # type: ignore[misc]  # a class of a package that is not installed here
    """The task."""

    signature = "context: str, query: str -> answer: str"
    output_field = "answer"


def run(task: loop.Task) -> str:
    config = RLMConfig(
        main_model="root",
        sub_model="sub",
        api_key="none",
        base_url=f"{task.url}/v1",
        interpreter="container",
        container=ContainerConfig(image=sys.argv[1]),
        max_llm_calls=CALLS,
    )
    configure(config)
    return str(Answer(config=config).run(context=task.context, query=loop.QUERY))


if __name__ == "__main__":
    loop.serve(run)
