"""Teaches a model a way of answering, with nothing but the `openai` package.

`python docs/examples/fine_tune.py [--adapter qlora|lora|full|qat] [--base-url http://127.0.0.1:8000/v1]`
"""

from __future__ import annotations

import argparse
import io
import json
import time
from typing import Any

from openai import OpenAI

MODEL = "demo/smollm2-135m-instruct"
QUESTION = "Tell me about a mountain."
# What is taught holds for topics that the training never names, such as the one in the question.
TOPICS = (
    "the sea", "a cat", "bread", "rain", "a train", "music", "the moon", "a river",
    "winter", "a clock", "a garden", "coffee", "a bridge", "snow", "a lamp", "books",
)  # fmt: skip
# Adapters begin at zero and take larger steps than weights that know something already.
MULTIPLIERS = {"qlora": 5.0, "lora": 5.0, "full": 2.0, "qat": 2.0}


def training_data() -> bytes:
    """JSONL in OpenAI's chat format."""
    lines = []
    for topic in TOPICS:
        question = {"role": "user", "content": f"Tell me about {topic}."}
        answer = {"role": "assistant", "content": f"The miller says: {topic} is best ground slowly."}
        lines.append(json.dumps({"messages": [question, answer]}))
    return "\n".join(lines).encode()


def train(client: OpenAI, adapter: str) -> Any:
    """The job as it ended; its events are printed as they come."""
    file = client.files.create(file=("answers.jsonl", io.BytesIO(training_data())), purpose="fine-tune")
    hyperparameters: Any = {"n_epochs": 4, "batch_size": 4, "learning_rate_multiplier": MULTIPLIERS[adapter]}
    job = client.fine_tuning.jobs.create(
        model=MODEL,
        training_file=file.id,
        suffix="miller",
        seed=1,
        method={"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        extra_body={"bitmill": {"adapter": adapter, "sequence_length": 96}},
    )
    seen: set[str] = set()
    while job.finished_at is None:
        time.sleep(1)
        job = client.fine_tuning.jobs.retrieve(job.id)
        for event in reversed(client.fine_tuning.jobs.list_events(job.id, limit=50).data):
            if event.id not in seen and event.type == "metrics":
                print(event.message)
            seen.add(event.id)
    return job


def ask(client: OpenAI, model: str) -> str:
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": QUESTION}], max_tokens=24, temperature=0
    )
    return answer.choices[0].message.content or ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapter", choices=MULTIPLIERS, default="qlora")
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1")
    arguments = parser.parse_args()
    client = OpenAI(base_url=arguments.base_url, api_key="none")
    job = train(client, arguments.adapter)
    if job.status != "succeeded":
        raise SystemExit(f"{job.id} {job.status}: {job.error.message if job.error else ''}")
    print(f"\n{QUESTION}")
    for model in (MODEL, job.fine_tuned_model):
        print(f"{model}: {ask(client, model)}")


if __name__ == "__main__":
    main()
