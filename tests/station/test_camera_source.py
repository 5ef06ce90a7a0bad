import pytest
from hypothesis import given
from hypothesis import strategies as st

from station.camera import redact_url


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("rtsp://cam.plant:8554/stream1", "rtsp://cam.plant:8554/stream1"),
        ("rtsp://admin:sekrit@cam/stream1", "rtsp://***@cam/stream1"),
        ("rtsp://admin:se/kr@it@cam/stream1", "rtsp://***@cam/stream1"),
        ("http://cam/video.cgi?size=2&usr=admin&pwd=sekrit", "http://cam/video.cgi?size=2&usr=***&pwd=***"),
        ("http://cam/video?api_key=sekrit#x", "http://cam/video?api_key=***"),
        ("v4l2:///dev/video0", "v4l2:///dev/video0"),
        ("folder:/data/good", "folder:/data/good"),
        (
            "gstreamer:rtspsrc location=rtsp://admin:sekrit@cam/1 latency=0 ! decodebin ! appsink",
            "gstreamer:rtspsrc location=rtsp://***@cam/1 latency=0 ! decodebin ! appsink",
        ),
        (
            'gstreamer:rtspsrc location=rtsp://cam/1 user-id=admin user-pw="se krit" ! decodebin ! appsink',
            "gstreamer:rtspsrc location=rtsp://cam/1 user-id=*** user-pw=*** ! decodebin ! appsink",
        ),
    ],
)
def test_credentials_are_hidden_and_the_rest_is_kept(url: str, shown: str) -> None:
    assert redact_url(url) == shown


@given(st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20))
def test_whatever_stands_before_the_host_is_hidden(user: str, password: str) -> None:
    assert redact_url(f"rtsp://{user}:{password}@cam/1") == "rtsp://***@cam/1"
