#!/usr/bin/env python3
"""Calls the service of server.py in every way gRPC knows, through the sidecar of this host.

    python3 client.py [SIDECAR] [SERVICE] [ROOT.pem]

A client of gRPC reaches a service of the mesh by dialling the sidecar and naming the service as the authority. With
a certificate (of the sidecar's `proxy.tls`) it does so by TLS.
"""

import sys
import time

import grpc

SIDECAR = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:15001"
SERVICE = sys.argv[2] if len(sys.argv) > 2 else "greeter.mesh"
ROOT = sys.argv[3] if len(sys.argv) > 3 else None

TEXT = {"request_serializer": str.encode, "response_deserializer": bytes.decode}


def dial(service):
    options = [("grpc.default_authority", service), ("grpc.enable_http_proxy", 0)]
    if ROOT is None:
        return grpc.insecure_channel(SIDECAR, options)
    with open(ROOT, "rb") as file:
        credentials = grpc.ssl_channel_credentials(file.read())
    options.append(("grpc.ssl_target_name_override", service))
    return grpc.secure_channel(SIDECAR, credentials, options)


def path(method):
    return f"/demo.Greeter/{method}"


def main():
    with dial(SERVICE) as channel:
        say = channel.unary_unary(path("Say"), **TEXT)
        answer, call = say.with_call("you", timeout=60, metadata=(("x-question", "why"),))
        print("unary:", answer, dict(call.initial_metadata())["x-answer"], dict(call.trailing_metadata())["x-cost"])
        large = "x" * 3_000_000
        print("large:", len(say(large, timeout=60)))

        count = channel.unary_stream(path("Count"), **TEXT)
        print("server streaming:", sum(int(n) for n in count("1000", timeout=60)))

        add = channel.stream_unary(path("Add"), **TEXT)
        print("client streaming:", add((str(n) for n in range(1001)), timeout=60))

        # Each line is said only when the one before has been answered: both directions are open at once.
        talk = channel.stream_stream(path("Talk"), **TEXT)
        heard = []

        def lines():
            for n in range(100):
                while len(heard) < n:
                    time.sleep(0.001)
                yield f"line {n}"

        for line in talk(lines(), timeout=60):
            heard.append(line)
        print("both:", len(heard), heard[-1])

        fail = channel.unary_unary(path("Fail"), **TEXT)
        for code in ("NOT_FOUND", "PERMISSION_DENIED"):
            try:
                fail(code, timeout=60)
            except grpc.RpcError as error:
                print("status:", error.code().name, error.details())

        wait = channel.unary_stream(path("Wait"), **TEXT)
        try:
            list(wait("", timeout=0.5))
        except grpc.RpcError as error:
            print("deadline:", error.code().name)
        call = wait("", timeout=60)
        time.sleep(0.1)
        call.cancel()
        print("cancelled:", call.code().name)

        try:
            channel.unary_unary(path("Nothing"), **TEXT)("", timeout=60)
        except grpc.RpcError as error:
            print("no method:", error.code().name)

    with dial("nobody.mesh") as channel:
        try:
            channel.unary_unary(path("Say"), **TEXT)("you", timeout=60)
        except grpc.RpcError as error:
            print("no service:", error.code().name, error.details())


if __name__ == "__main__":
    main()
