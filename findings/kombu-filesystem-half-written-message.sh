#!/usr/bin/env bash
# kombu 5.7.0, transport `filesystem`: a consumer reads messages that their sender is still writing.
#
# Expected: a message is taken from the folder when it is whole, as from every other broker.
# Seen: the sender creates `….msg`, then locks and writes it; the reader takes no lock. A reader that polls in that
# moment moves the empty file away and raises json.decoder.JSONDecodeError out of `drain_events`/`basic_get`. The
# message is lost, and a Celery worker, which does not expect that error there, ends.
# Output seen: "JSONDecodeError after N messages", N below a hundred.
#
# Exits with 0 while that is so, with 1 once every message arrives.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet install kombu==5.7.0
cat > "$folder/show.py" <<'PYTHON'
import json
import multiprocessing
import sys
import time

from kombu import Connection, Queue

MESSAGES = 5000
FOLDER = sys.argv[1]


def connect():
    options = {"data_folder_in": FOLDER, "data_folder_out": FOLDER, "control_folder": f"{FOLDER}/control"}
    return Connection("filesystem://", transport_options=options)


def send():
    with connect() as connection:
        producer = connection.Producer()
        for number in range(MESSAGES):
            producer.publish({"number": number}, routing_key="work")


def main():
    sender = multiprocessing.Process(target=send)
    with connect() as connection:
        channel = connection.channel()
        Queue("work")(channel).declare()
        sender.start()
        arrived, until = 0, time.monotonic() + 120
        while arrived < MESSAGES and time.monotonic() < until:
            try:
                arrived += channel.basic_get("work", no_ack=True) is not None
            except json.JSONDecodeError:
                print(f"JSONDecodeError after {arrived} messages")
                sender.terminate()
                return 0
    sender.join()
    print(f"{arrived} of {MESSAGES} messages arrived: the behaviour has changed")
    return 1


if __name__ == "__main__":
    sys.exit(main())
PYTHON
mkdir "$folder/messages"
"$folder/venv/bin/python" "$folder/show.py" "$folder/messages"
