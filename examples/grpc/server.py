#!/usr/bin/env python3
"""A gRPC service with one method of each kind, without generated code: its messages are plain UTF-8.

    python3 server.py [PORT]        # 0 takes a free port; the first line printed names it
    starling register greeter --port PORT --protocol grpc

It knows nothing of the mesh.
"""

import sys
import threading
from concurrent import futures

import grpc


def say(name, context):
    """One message in, one out."""
    for key, value in context.invocation_metadata():
        if key == "x-question":
            context.send_initial_metadata((("x-answer", value),))
    context.set_trailing_metadata((("x-cost", "7"),))
    return f"hello {name}"


def count(until, context):
    """One message in, many out."""
    for n in range(int(until)):
        yield str(n + 1)


def add(numbers, context):
    """Many messages in, one out."""
    return str(sum(int(number) for number in numbers))


def talk(lines, context):
    """Many messages in and out, each answered as it comes."""
    for line in lines:
        yield line.upper()


def fail(code, context):
    """A call that goes wrong."""
    status = next(status for status in grpc.StatusCode if status.name == code)
    context.abort(status, "50 % of it went wrong")


def wait(_, context):
    """A call that never ends by itself: says when its caller has given it up."""
    ended = threading.Event()
    context.add_callback(ended.set)
    print("waiting", flush=True)
    ended.wait()
    print("given up", flush=True)
    yield "nobody hears this"


def main():
    text = {"request_deserializer": bytes.decode, "response_serializer": str.encode}
    methods = {
        "Say": grpc.unary_unary_rpc_method_handler(say, **text),
        "Count": grpc.unary_stream_rpc_method_handler(count, **text),
        "Add": grpc.stream_unary_rpc_method_handler(add, **text),
        "Talk": grpc.stream_stream_rpc_method_handler(talk, **text),
        "Fail": grpc.unary_unary_rpc_method_handler(fail, **text),
        "Wait": grpc.unary_stream_rpc_method_handler(wait, **text),
    }
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=16))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("demo.Greeter", methods),))
    port = server.add_insecure_port(f"127.0.0.1:{sys.argv[1] if len(sys.argv) > 1 else 0}")
    server.start()
    print(f"listening on port {port}", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
