"""A real RTSP camera on localhost: H.264 from GStreamer's RTSP server. A child process, run by Debian's python3.

Prints ``port N`` when it serves, then ``setup TRANSPORT`` for every client that sets a stream up. SIGSTOP makes it fall
silent, SIGTERM takes it away; started again with ``--port N`` it is back.
"""

import argparse
import signal

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtsp", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtsp, GstRtspServer  # noqa: E402 - versions must be chosen first

PIPELINE = (
    "( videotestsrc is-live=true pattern=ball ! video/x-raw,width=160,height=120,framerate=50/1 "
    "! openh264enc gop-size=5 ! h264parse ! rtph264pay name=pay0 pt=96 config-interval=-1 )"
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true", help="only tell whether all parts are installed")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--user", default="")
    parser.add_argument("--password", default="")
    arguments = parser.parse_args()

    Gst.init(None)
    missing = [name for name in ("openh264enc", "h264parse", "rtph264pay") if Gst.ElementFactory.find(name) is None]
    if missing:
        raise SystemExit(f"GStreamer has no {', '.join(missing)}")
    if arguments.check:
        return
    server = GstRtspServer.RTSPServer(address="127.0.0.1", service=str(arguments.port))
    factory = GstRtspServer.RTSPMediaFactory(launch=PIPELINE, shared=True)
    if arguments.user:
        auth = GstRtspServer.RTSPAuth()
        auth.set_supported_methods(GstRtsp.RTSPAuthMethod.DIGEST)  # what cameras ask for
        token = GstRtspServer.RTSPToken()
        token.set_string(GstRtspServer.RTSP_TOKEN_MEDIA_FACTORY_ROLE, "viewer")
        auth.add_digest(arguments.user, arguments.password, token)
        server.set_auth(auth)
        may = "media.factory.access=true, media.factory.construct=true"
        factory.add_role_from_structure(Gst.Structure.new_from_string(f"viewer, {may}"))
    server.get_mount_points().add_factory("/stream", factory)
    server.connect("client-connected", lambda _, client: client.connect("setup-request", report_transport))
    server.attach(None)
    print("port", server.get_bound_port(), flush=True)

    loop = GLib.MainLoop()
    GLib.unix_signal_add(GLib.PRIORITY_DEFAULT, signal.SIGTERM, loop.quit)
    loop.run()


def report_transport(_client: GstRtspServer.RTSPClient, context: GstRtspServer.RTSPContext) -> None:
    header = context.request.get_header(GstRtsp.RTSPHeaderField.TRANSPORT, 0)
    print("setup", header[1] if isinstance(header, tuple) else header, flush=True)


if __name__ == "__main__":
    main()
