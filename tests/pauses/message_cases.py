"""Messages and devices: MQTT, AMQP, NATS, WebSocket, Modbus, OPC UA, serial lines."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from tests.pauses.rig import Case, Site, script, served_by

__all__ = ["CASES"]


async def _mosquitto(site: Site) -> int:
    port = site.free_port()
    conf = site.file("mosquitto.conf", f"listener {port} 127.0.0.1\nallow_anonymous true\n")
    await site.serve("mosquitto", "mosquitto", "-c", conf, port=port)
    watcher = await site.programs.start(
        "watcher", "mosquitto_sub", "-p", str(port), "-t", "lines", "-q", "2", cwd=site.folder
    )
    site.notes["log"] = str(watcher.log)
    return port


def _all_lines(site: Site, _text: str) -> str:
    time.sleep(2)
    arrived = {line for line in Path(site.notes["log"]).read_text().splitlines() if line.startswith("line ")}
    return f"{len(arrived)} of 60 lines arrived" if len(arrived) != 60 else ""


def _mosquitto_pub(site: Site, qos: int) -> list[str]:
    feed = "for n in $(seq 60); do echo line $n; sleep 0.1; done"
    return ["bash", "-c", f"set -o pipefail; ({feed}) | mosquitto_pub -p {site.port} -t lines -q {qos} -l"]


_PAHO: Final = """
import sys, time, paho.mqtt.client as mqtt
client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
client.connect("127.0.0.1", int(sys.argv[1]))
client.loop_start()
for number in range(1, 61):
    client.publish("lines", f"line {number}", qos=1).wait_for_publish(200)
    time.sleep(0.1)
"""

_NATS: Final = """
import asyncio, sys, nats
async def main():
    async def told(error): print(type(error).__name__, error, flush=True)
    client = await nats.connect(f"nats://127.0.0.1:{sys.argv[1]}", error_cb=told)
    subscription = await client.subscribe("s")
    for number in range(60):
        await client.publish("s", str(number).encode())
        await client.flush(200)
        await asyncio.sleep(0.1)
    got = 0
    while True:
        try: await subscription.next_msg(2)
        except Exception: break
        got += 1
    print(got)
    sys.exit(got != 60)
asyncio.run(main())
"""


async def _nats(site: Site) -> int:
    port = site.free_port()
    await site.serve(
        "nats", str(Path(site.python).parent / "nats-server"), "-a", "127.0.0.1", "-p", str(port), port=port
    )
    return port


_WS_SERVER: Final = """
import asyncio, sys
from websockets.asyncio.server import serve
async def echo(socket):
    async for message in socket: await socket.send(message)
async def main():
    async with serve(echo, "127.0.0.1", int(sys.argv[1])) as server: await server.serve_forever()
asyncio.run(main())
"""
_WS: Final = """
import asyncio, sys
from websockets.asyncio.client import connect
async def main():
    async with connect(f"ws://127.0.0.1:{sys.argv[1]}") as socket:
        for number in range(60):
            await socket.send(str(number))
            await socket.recv()
            await asyncio.sleep(0.1)
asyncio.run(main())
"""

_GRPC_SERVER: Final = """
import sys, time, grpc
from concurrent.futures import ThreadPoolExecutor
def answer(request, context):
    time.sleep(6)
    return request
handler = grpc.method_handlers_generic_handler("s", {"m": grpc.unary_unary_rpc_method_handler(answer)})
server = grpc.server(ThreadPoolExecutor(4), handlers=(handler,))
server.add_insecure_port(f"127.0.0.1:{sys.argv[1]}")
server.start()
server.wait_for_termination()
"""
_GRPC: Final = """
import sys, grpc
print(grpc.insecure_channel(f"127.0.0.1:{sys.argv[1]}").unary_unary("/s/m")(b"there"))
"""

_MODBUS_SERVER: Final = """
import socketserver, sys
class Device(socketserver.BaseRequestHandler):
    def handle(self):
        while True:
            head = self.request.recv(260)
            if not head: return
            count = int.from_bytes(head[10:12], "big")
            body = bytes([head[6], head[7], 2 * count]) + bytes(2 * count)
            self.request.sendall(head[:4] + len(body).to_bytes(2, "big") + body)
class Server(socketserver.ThreadingTCPServer): allow_reuse_address = True
Server(("127.0.0.1", int(sys.argv[1])), Device).serve_forever()
"""
_PYMODBUS: Final = """
import sys, time
from pymodbus.client import ModbusTcpClient
client = ModbusTcpClient("127.0.0.1", port=int(sys.argv[1]))
client.connect()
for number in range(60):
    answer = client.read_holding_registers(0, count=4)
    if answer.isError(): sys.exit(str(answer))
    time.sleep(0.1)
"""

_OPCUA_SERVER: Final = """
import asyncio, sys, logging
from asyncua import Server
async def main():
    server = Server()
    await server.init()
    server.set_endpoint(f"opc.tcp://127.0.0.1:{sys.argv[1]}/")
    async with server: await asyncio.sleep(3600)
asyncio.run(main())
"""
_OPCUA: Final = """
import asyncio, sys
from asyncua import Client
async def main():
    async with Client(f"opc.tcp://127.0.0.1:{sys.argv[1]}/") as client:
        for number in range(60):
            await client.nodes.server_state.read_value()
            await asyncio.sleep(0.1)
asyncio.run(main())
"""

_ECHO: Final = """
import socketserver, sys
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(4096): self.request.sendall(data)
class Server(socketserver.ThreadingTCPServer): allow_reuse_address = True
Server(("127.0.0.1", int(sys.argv[1])), Echo).serve_forever()
"""
_SERIAL: Final = """
import sys, time, serial
port = serial.serial_for_url(f"socket://127.0.0.1:{sys.argv[1]}", timeout=10)
for number in range(60):
    port.write(b"MEAS?\\n")
    if port.readline() != b"MEAS?\\n": sys.exit(f"no answer within the time-out, at {number}")
    time.sleep(0.1)
"""
_RPYC_SERVER: Final = """
import sys, time, rpyc
from rpyc.utils.server import ThreadedServer
class S(rpyc.Service):
    def exposed_wait(self): time.sleep(6); return "there"
ThreadedServer(S, hostname="127.0.0.1", port=int(sys.argv[1])).start()
"""
_RPYC: Final = """
import sys, rpyc
print(rpyc.connect("127.0.0.1", int(sys.argv[1])).root.wait())
"""
_ZMQ_SERVER: Final = """
import sys, zmq
socket = zmq.Context().socket(zmq.REP)
socket.bind(f"tcp://127.0.0.1:{sys.argv[1]}")
while True: socket.send(socket.recv())
"""
_ZMQ: Final = """
import sys, time, zmq
socket = zmq.Context().socket(zmq.REQ)
socket.connect(f"tcp://127.0.0.1:{sys.argv[1]}")
for number in range(60):
    socket.send(b"x"); socket.recv(); time.sleep(0.1)
"""


async def _rabbit(site: Site) -> int:
    port, dist, epmd = site.free_port(), site.free_port(), site.free_port()
    conf = site.file("rabbitmq.conf", f"listeners.tcp.1 = 127.0.0.1:{port}\n")
    environment = {
        "RABBITMQ_CONFIG_FILE": conf,
        "RABBITMQ_NODENAME": f"kd{port}@localhost",
        "RABBITMQ_MNESIA_BASE": str(site.folder / "mnesia"),
        "RABBITMQ_LOG_BASE": str(site.folder / "logs"),
        "RABBITMQ_DIST_PORT": str(dist),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(site.folder / "plugins"),
        "ERL_EPMD_PORT": str(epmd),
        "LANG": "C.UTF-8",
    }
    words = [f"{key}={value}" for key, value in environment.items()]
    await site.serve("rabbit", "env", *words, "/usr/lib/rabbitmq/bin/rabbitmq-server", port=port)
    return port


_PIKA: Final = """
import sys, time, pika
connection = pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", int(sys.argv[1])))
channel = connection.channel()
channel.queue_declare("q")
channel.confirm_delivery()
for number in range(60):
    channel.basic_publish("", "q", b"x")
    connection.sleep(0.1)
print(channel.queue_declare("q", passive=True).method.message_count)
"""


CASES: Final = [
    Case(
        "mosquitto_pub -l, QoS 0",
        "a line each 0.1 s",
        _mosquitto,
        lambda s: _mosquitto_pub(s, 0),
        ("mosquitto", "mosquitto_pub"),
        good=_all_lines,
        counts=True,
        helps="`-q 1 -c -i ID`, and `-k 150`",
        version=("mosquitto_pub", "--version"),
    ),
    Case(
        "mosquitto_pub -l, QoS 1",
        "a line each 0.1 s",
        _mosquitto,
        lambda s: _mosquitto_pub(s, 1),
        ("mosquitto", "mosquitto_pub"),
        good=_all_lines,
        counts=True,
        version=("mosquitto_pub", "--version"),
    ),
    Case(
        "paho-mqtt, QoS 1",
        "a message each 0.1 s",
        _mosquitto,
        script(_PAHO),
        ("mosquitto",),
        good=_all_lines,
        counts=True,
        version=("pip", "paho-mqtt"),
    ),
    Case(
        "nats-py",
        "a message each 0.1 s",
        _nats,
        script(_NATS),
        helps="`ping_interval=150`; the server's `ping_interval`",
        version=("pip", "nats-py"),
    ),
    Case(
        "websockets",
        "a message each 0.1 s",
        served_by(_WS_SERVER),
        script(_WS),
        helps="`ping_timeout=None` at both ends",
        version=("pip", "websockets"),
    ),
    Case("grpcio", "a call of 6 s", served_by(_GRPC_SERVER), script(_GRPC), version=("pip", "grpcio")),
    Case(
        "pymodbus",
        "a read each 0.1 s",
        served_by(_MODBUS_SERVER),
        script(_PYMODBUS),
        helps="`ModbusTcpClient(timeout=150)`",
        version=("pip", "pymodbus"),
    ),
    Case(
        "asyncua",
        "a read each 0.1 s",
        served_by(_OPCUA_SERVER),
        script(_OPCUA),
        helps="`Client(timeout=150)`",
        version=("pip", "asyncua"),
    ),
    Case(
        "pyserial socket://",
        "a question each 0.1 s, time-out 10 s",
        served_by(_ECHO),
        script(_SERIAL),
        helps="a longer `timeout=`",
        version=("pip", "pyserial"),
    ),
    Case(
        "RPyC",
        "a call of 6 s",
        served_by(_RPYC_SERVER),
        script(_RPYC),
        helps="`config={'sync_request_timeout': None}`",
        version=("pip", "rpyc"),
    ),
    Case("pyzmq REQ", "a question each 0.1 s", served_by(_ZMQ_SERVER), script(_ZMQ), version=("pip", "pyzmq")),
    Case(
        "pika",
        "a message each 0.1 s",
        _rabbit,
        script(_PIKA),
        ("rabbitmq-server",),
        helps="`heartbeat=300` at the client",
        version=("pip", "pika"),
    ),
]
