import queue
import sys

import paho.mqtt.client as mqtt
import pytest

from station.demo.broker import HOST, Broker
from station.demo.textures import DemoError


def connect(port, client_id, will=None):
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=client_id)
    messages = queue.SimpleQueue()
    subscribed = queue.SimpleQueue()
    client.on_message = lambda c, d, message: messages.put((message.topic, message.payload, message.retain))
    client.on_subscribe = lambda *_: subscribed.put(True)
    if will:
        client.will_set(*will)
    client.connect(HOST, port)
    client.loop_start()
    return client, messages, subscribed


def leave(client):
    client.disconnect()
    client.loop_stop()


def test_messages_pass_and_retained_ones_wait():
    with Broker() as broker:
        sender, _, _ = connect(broker.port, "sender")
        sender.publish("a/info", b"kept", qos=1, retain=True).wait_for_publish(5)
        reader, messages, subscribed = connect(broker.port, "reader")
        reader.subscribe("a/#", qos=1)
        subscribed.get(timeout=5)
        assert messages.get(timeout=5) == ("a/info", b"kept", True)
        picture = bytes(range(256)) * 400
        sender.publish("a/alert/1/image", picture, qos=1).wait_for_publish(5)
        assert messages.get(timeout=5) == ("a/alert/1/image", picture, False)
        leave(sender)
        leave(reader)


def test_two_brokers_run_side_by_side_and_both_end():
    with Broker() as one, Broker() as two:
        assert one.port != two.port
    for ended in (one, two):
        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
        with pytest.raises(ConnectionRefusedError):
            client.connect(HOST, ended.port)


def test_without_amqtt_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "amqtt.broker", None)
    with pytest.raises(DemoError, match=r"pip install 'cbigan-station\[demo\]'"), Broker():
        pass


def test_a_broker_that_cannot_listen_says_so(monkeypatch):
    with Broker() as taken:
        monkeypatch.setattr("station.demo.broker._free_port", lambda: taken.port)
        with pytest.raises(DemoError, match="does not start"), Broker():
            pass
