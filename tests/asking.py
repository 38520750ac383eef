"""Requests to the application of the dashboard, without a server, and a server in a thread."""

import json
import threading
from contextlib import contextmanager
from io import BytesIO
from wsgiref.util import setup_testing_defaults

from waitress import wasyncore

from hscc_search.report.live import listen


def ask(application, path, query="", method="GET", body=b"", **more):
    """The status, the headers by name and the body of the answer to a request; ``more`` goes into its environment."""
    environment = {"PATH_INFO": path, "QUERY_STRING": query, "REQUEST_METHOD": method, **more}
    environment |= {"wsgi.input": BytesIO(body), "CONTENT_LENGTH": str(len(body))}
    setup_testing_defaults(environment)
    started = []
    answered = application(environment, lambda *given: started.append(given))
    content = b"".join(answered)
    if hasattr(answered, "close"):
        answered.close()
    status, headers = started[-1][:2]
    return int(status.split()[0]), dict(headers), content


def ask_json(application, path, query=""):
    """The JSON that is answered to a request, which must be answered."""
    status, _, content = ask(application, path, query)
    assert status == 200, content
    return json.loads(content)


@contextmanager
def serving(served, **options):
    """The port of a server."""
    server = listen(served, "127.0.0.1", 0, **options)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server.effective_port
    finally:
        server.trigger.pull_trigger(lambda: wasyncore.close_all(server._map))  # which ends its loop
        thread.join()
        server.task_dispatcher.shutdown()
