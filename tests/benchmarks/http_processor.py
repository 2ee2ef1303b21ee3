"""Ray Data's own HTTP processor on the same requests: the arm to compare with. `python -m … URL`."""

import sys

import ray
from ray.data.llm import HttpRequestProcessorConfig, build_processor

from tests.benchmarks.synthesis import HTTP_PROCESSOR_REQUESTS, TEACHER


def main() -> None:
    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    # The settings of its documentation: batches of 64, one actor.
    settings = HttpRequestProcessorConfig(
        url=f"{sys.argv[1]}/inference/v1/chat/completions", batch_size=64, concurrency=1
    )
    processor = build_processor(
        settings,
        preprocess=lambda row: {
            "payload": {
                "model": TEACHER,
                "messages": [{"role": "user", "content": f"Text:\nAna Silva{row['id']} lives in Lyon."}],
                "max_tokens": 100,
            }
        },
        postprocess=lambda row: {"answer": row["http_response"]["choices"][0]["message"]["content"]},
    )
    assert processor(ray.data.range(HTTP_PROCESSOR_REQUESTS)).count() == HTTP_PROCESSOR_REQUESTS
    ray.shutdown()


if __name__ == "__main__":
    main()
