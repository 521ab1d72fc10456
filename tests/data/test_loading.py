"""Which videos a config names, and what decides how its data sets are read."""

from __future__ import annotations

import pytest

from src.config import Config
from src.data.loading import load_split, wanted_videos
from src.data.options import LoadOptions
from tests.errors import refuses


class TestListsOfVideos:
    def test_none_and_names_stay(self):
        assert wanted_videos(None) is None
        assert wanted_videos(["a", "b"]) == ["a", "b"]

    def test_a_file_holds_one_a_line(self, tmp_path):
        (tmp_path / "val.txt").write_bytes("\ufeffbear\r\n\r\nthe bus \n".encode())
        assert wanted_videos(str(tmp_path / "val.txt")) == ["bear", "the bus"]

    @pytest.mark.parametrize(
        "line",
        [
            "/JPEGImages/480p/{video}/{frame}.jpg /Annotations/480p/{video}/{frame}.png ",
            "/JPEGImages/1080p/{video}/{frame}.jpg",
            "/JPEGImages/{video}/{frame}.jpg /Annotations/{video}/{frame}.png",
        ],
    )
    def test_a_file_of_frames_as_davis_2016_has_it_names_their_videos(self, line, tmp_path):
        frames = [(video, frame) for video in ("dog-agility", "bear") for frame in ("00000", "00001")]
        text = "\n".join(line.format(video=video, frame=frame) for video, frame in frames)
        (tmp_path / "train.txt").write_text(text)
        assert wanted_videos(str(tmp_path / "train.txt")) == ["dog-agility", "bear"]

    def test_names_that_look_like_files_stay(self, tmp_path):
        (tmp_path / "train.txt").write_text("JPEGImages/480p/a.jpg\n/JPEGImages/480p\n/JPEGImages/a.jpg\n")
        names = ["JPEGImages/480p/a.jpg", "/JPEGImages/480p", "/JPEGImages/a.jpg"]
        assert wanted_videos(str(tmp_path / "train.txt")) == names

    @pytest.mark.parametrize(("content", "message"), [(b"\n\n", "is empty"), (b"\xff\xfe\x00", "not a text file")])
    def test_other_files_are_refused(self, tmp_path, content, message):
        (tmp_path / "val.txt").write_bytes(content)
        with refuses("data.video-list", "val.txt", message):
            wanted_videos(str(tmp_path / "val.txt"))
        with refuses("data.video-list", "none.txt"):
            wanted_videos(str(tmp_path / "none.txt"))


def test_options_of_a_run(tmp_path):
    config = Config.model_validate(
        {
            "dataset": {"max_ann_per_img": 3, "follow_links": True, "skip_bad": True},
            "training": {"num_workers": 2},
            "output_dir": str(tmp_path),
        }
    )
    assert LoadOptions.from_config(config) == LoadOptions(tmp_path, 3, True, True, workers=2)


def test_a_split_that_a_domain_lacks(tmp_path):
    (domain, *_) = Config().dataset.domains
    with refuses("data.no-split", "test_img_folder"):
        load_split(domain, "test", LoadOptions(tmp_path))
