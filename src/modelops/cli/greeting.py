"""What `serve` says when it is ready: where the coordinator listens, and a call to copy for each transport."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from modelops.app import Running
from modelops.settings import Settings, TlsSettings
from modelops.transports.listening import key_pair

_QUESTION = "Name three colours."
_KEY = 'os.environ["MODELOPS_API_KEY"]'


def banner(running: Running, loaded: Sequence[str], settings: Settings) -> str:
    """Addresses and calls. The calls work as they are printed, with a key in MODELOPS_API_KEY where one is needed."""
    model = loaded[0] if loaded else "NAME"
    keys, tls = running.coordinator.needs_keys, settings.tls
    rest = _reached(running.rest.address)
    what = f"serving {', '.join(loaded)}" if loaded else "no model loaded yet: modelops load NAME"
    lines = ["", f"ModelOps Coordinator is ready, {what}. Ctrl-C ends it."]
    if keys:
        lines.append("These calls read a key from MODELOPS_API_KEY; 'modelops keys create' makes one.")
    lines += [
        "",
        f"REST  {running.rest.address}   (documentation: {rest}/docs)",
        f"  {_curl(rest, model, tls, keys=keys)}",
        "",
        f"gRPC  {running.grpc.address}",
        f"  {_grpc(_reached(running.grpc.address), model, tls, keys=keys)}",
        "",
        f"ZMQ   {running.zmq.address}",
        f"  {_zmq(_reached(running.zmq.address), model, tls, keys=keys)}",
        "",
    ]
    return "\n".join(lines)


def _curl(address: str, model: str, tls: TlsSettings, *, keys: bool) -> str:
    trusting = f"--cacert {shlex.quote(str(tls.cert_file.absolute()))} " if tls.cert_file else ""
    showing = '-H "X-API-Key: $MODELOPS_API_KEY" ' if keys else ""
    body = shlex.quote(_body(model))
    return f"curl {trusting}{showing}{address}/inference -H 'Content-Type: application/json' -d {body}"


def _grpc(address: str, model: str, tls: TlsSettings, *, keys: bool) -> str:
    if tls.client_ca_file:
        return "wants a client certificate: docs/security.md"
    channel = f'grpc.insecure_channel("{address}")'
    if tls.cert_file:
        trusting = f'grpc.ssl_channel_credentials(open({json.dumps(str(tls.cert_file.absolute()))}, "rb").read())'
        channel = f'grpc.secure_channel("{address}", {trusting})'
    showing = f', metadata=[("x-api-key", {_KEY})]' if keys else ""
    return _python(
        f"import {'os, ' if keys else ''}grpc, model_ops_pb2 as pb, model_ops_pb2_grpc as rpc; "
        f'print(rpc.ModelOpsStub({channel}).Infer(pb.InferenceRequest(model_name="{model}", input_text="{_QUESTION}", '
        f"temperature=0.7){showing}).output_text)"
    )


def _zmq(address: str, model: str, tls: TlsSettings, *, keys: bool) -> str:
    encrypting = ""
    if tls.curve_file:
        server = key_pair(tls.curve_file).public.decode()
        encrypting = f's.curve_serverkey = b"{server}"; s.curve_publickey, s.curve_secretkey = zmq.curve_keypair(); '
    showing = f'"api_key": {_KEY}, ' if keys else ""
    return _python(
        f"import {'os, ' if keys else ''}zmq; s = zmq.Context().socket(zmq.REQ); {encrypting}"
        f's.connect("{address}"); s.send_json({{"action": "infer", {showing}"payload": {_body(model)}}}); '
        'print(s.recv_json()["result"]["output_text"])'
    )


def _body(model: str) -> str:
    return json.dumps({"model_name": model, "input_text": _QUESTION})


def _python(code: str) -> str:
    python = sys.executable
    with contextlib.suppress(ValueError):
        python = str(Path(python).relative_to(Path.cwd()))
    return f"{python} -c {shlex.quote(code)}"


def _reached(address: str) -> str:
    """The address as this machine reaches it: what listens everywhere listens on localhost, too."""
    return re.sub(r"(^|//)(?:0\.0\.0\.0|\[::\]):", r"\1localhost:", address)
