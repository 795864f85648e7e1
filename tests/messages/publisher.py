"""Publisher in a separate process. It publishes one result every 50 ms until it is stopped.

python -m tests.messages.publisher ADDRESS
"""

from __future__ import annotations

import itertools
import sys
import time

from tests.messages.samples import CLASSES, camera_status, node_status, result
from vision.messaging.publisher import Publisher


def main() -> None:
    with Publisher(sys.argv[1], node="n", class_names=CLASSES) as publisher:
        publisher.publish_status(node_status())
        publisher.publish_status(camera_status())
        print("ready", flush=True)
        for index in itertools.count():
            publisher.publish(result(index=index))
            time.sleep(0.05)


if __name__ == "__main__":
    main()
