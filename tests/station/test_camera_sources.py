from pathlib import Path

import cv2
import numpy as np
import pytest
from pydantic import ValidationError

from station.camera import CameraError, Picture, Source
from station.camera.sources import make_source
from station.settings import CameraSettings
from tests.support.mjpeg_server import number_of, numbered_picture


def source_of(url: str) -> Source:
    return make_source(CameraSettings(url=url, read_timeout=1))


def read_all(source: Source) -> list[Picture]:
    pictures = []
    while (picture := source.read()) is not None:
        pictures.append(picture)
    return pictures


def write_video(path: Path, frames: int) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 25, (160, 120))
    assert writer.isOpened()
    for number in range(frames):
        writer.write(numbered_picture(number))
    writer.release()
    return path


def test_folder_gives_every_image_in_order_with_its_name(tmp_path: Path) -> None:
    for number, name in enumerate(["a/2.png", "b/1.png", "b/10.bmp"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / name), numbered_picture(number))
    (tmp_path / "notes.txt").write_text("no image")
    source = source_of(f"folder:{tmp_path}")
    for _ in range(2):  # opened again, it starts again
        source.open()
        pictures = read_all(source)
        assert [picture.name for picture in pictures] == ["a/2.png", "b/1.png", "b/10.bmp"]
        for number, picture in enumerate(pictures):
            np.testing.assert_array_equal(picture.image, numbered_picture(number))
        source.close()


def test_folder_names_the_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    source = source_of(f"folder:{tmp_path}")
    source.open()
    with pytest.raises(CameraError, match=r"broken\.png"):
        source.read()


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("folder:{tmp}/nowhere", "nowhere: no such folder"),
        ("folder:{tmp}", "holds no image file"),
        ("file:{tmp}/nothing.mp4", r"nothing\.mp4: no such file"),
        ("file:{tmp}/text.mp4", r"text\.mp4: not a video"),
    ],
)
def test_what_cannot_be_opened_is_named(tmp_path: Path, url: str, reason: str) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    source = source_of(url.format(tmp=tmp_path))
    with pytest.raises(CameraError, match=reason):
        source.open()


@pytest.mark.parametrize("form", ["file:{}", "file://{}"])
def test_video_gives_every_frame_and_then_its_end(tmp_path: Path, form: str) -> None:
    path = write_video(tmp_path / "line.avi", 12)
    source = source_of(form.format(path))
    for _ in range(2):
        source.open()
        images = [picture.image for picture in read_all(source)]
        assert [number_of(image) for image in images] == list(range(12))
        assert {(image.shape, image.dtype.name) for image in images} == {((120, 160, 3), "uint8")}
        source.close()


@pytest.mark.parametrize("form", ["v4l2://{}", "v4l2:{}"])
def test_v4l2_opens_the_device_that_the_url_names(form: str) -> None:
    source = source_of(form.format("/dev/video-of-nobody"))
    with pytest.raises(CameraError, match=r"cannot open /dev/video-of-nobody: no such device; `v4l2-ctl"):
        source.open()


def test_v4l2_refuses_a_device_that_is_no_camera() -> None:
    source = source_of("v4l2:///dev/null")
    with pytest.raises(CameraError, match=r"cannot open /dev/null: it is no camera"):
        source.open()


@pytest.mark.skipif(cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER), reason="this OpenCV has GStreamer")
def test_gstreamer_without_gstreamer_says_what_to_install() -> None:
    with pytest.raises(CameraError, match=r"has no GStreamer: .*apt-get install python3-opencv"):
        source_of("gstreamer:videotestsrc ! videoconvert ! appsink")


def test_gstreamer_pipeline_must_end_in_an_appsink() -> None:
    with pytest.raises(CameraError, match=r"user-pw=\*\*\* ! fakesink: must end in an appsink"):
        source_of("gstreamer:rtspsrc location=rtsp://cam/1 user-pw=sekrit ! fakesink")


@pytest.mark.parametrize("url", ["rtsp://admin:se/krit@cam/1", "http:///stream.mjpg", "http://cam:sekrit/1"])
def test_a_url_that_is_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(CameraError, match="no valid URL") as refusal:
        source_of(url)
    assert "se/krit" not in str(refusal.value)


def test_demo_is_the_sample_line() -> None:
    pytest.importorskip("skimage", reason="the sample line needs the extra `demo`")
    source = source_of("demo:brick?frames=3")
    source.open()
    assert len(read_all(source)) == 3


@pytest.mark.parametrize("more", [{"fps": 10}, {"loop": True}])
def test_pace_and_loop_are_refused_where_they_would_be_ignored(more: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="a live camera sets its own pace"):
        CameraSettings.model_validate({"url": "rtsp://cam/1", **more})
    assert CameraSettings.model_validate({"url": "folder:pictures", **more})
