"""The inspection station: camera, engine, judge, MQTT; and its command line."""

__version__ = "0.1.0"
