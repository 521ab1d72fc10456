"""What a data set is recognised as, where its annotations are looked for, and what is said when nothing fits."""

from __future__ import annotations

from pathlib import Path

import pytest

from src.config import DomainConfig
from src.core.errors import UserError
from src.data.checks.validate import check, data_set
from src.data.formats.registry import open_source, recognise, wanted_videos
from src.data.records import DataSet
from src.data.synthetic.worlds import SOURCE, make_videos
from src.data.writers import write_coco, write_davis, write_folder, write_sav, write_tracked_coco, write_ytvis


@pytest.fixture(scope="module")
def videos() -> DataSet:
    return make_videos(SOURCE, 2, 0, frames=2, side=32)


def load(where: DomainConfig) -> DataSet:
    source = open_source(where, 200)
    return data_set(source, check(source, workers=0))


def place(folder: Path, ann_file: Path | None = None, **more) -> DomainConfig:
    return DomainConfig(name="x", img_folder=str(folder), ann_file=None if ann_file is None else str(ann_file), **more)


WRITERS = {
    "coco": write_coco, "ytvis": write_ytvis, "davis": write_davis, "sav": write_sav, "folder": write_folder,
}  # fmt: skip


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("named", [True, False], ids=["named", "auto"])
def test_every_format_is_recognised_and_may_be_named(kind, named, videos, tmp_path):
    WRITERS[kind](tmp_path, videos)
    data = load(place(tmp_path, format=kind if named else "auto"))
    assert [video.video_id for video in data.videos] == [video.video_id for video in videos.videos]
    assert recognise(place(tmp_path))[0] == kind


@pytest.mark.parametrize("kind", WRITERS)
def test_wanted_videos_in_every_format(kind, videos, tmp_path):
    WRITERS[kind](tmp_path, videos)
    wanted = videos.videos[1].video_id
    (tmp_path / "val.txt").write_text(f"\n{wanted}\n")
    for names in ([wanted], str(tmp_path / "val.txt")):
        source = open_source(place(tmp_path, videos=names), 200)
        assert [source.read(index)[0].video_id for index in range(len(source))] == [wanted]
    with pytest.raises(UserError, match=f"no video 'sorce_00000'.*{videos.videos[0].video_id}"):
        open_source(place(tmp_path, videos=["sorce_00000"]), 200)


class TestRecognition:
    def test_annotations_that_are_named_decide(self, videos, tmp_path):
        write_coco(tmp_path / "set", videos)
        write_ytvis(tmp_path / "set", videos)
        write_tracked_coco(tmp_path / "tracked", videos)
        for file, kind in {
            "set/_annotations.coco.json": "coco", "set/instances.json": "ytvis", "tracked/instances.json": "ytvis",
        }.items():  # fmt: skip
            assert recognise(place(tmp_path / "set", tmp_path / file)) == (kind, tmp_path / file)

    def test_a_masklet_file_may_be_named(self, videos, tmp_path):
        write_sav(tmp_path, videos)
        file = tmp_path / f"{videos.videos[0].video_id}_manual.json"
        assert recognise(place(tmp_path, file)) == ("sav", file)
        assert len(open_source(place(tmp_path, file), 200)) == 1

    def test_roboflow_s_file_comes_before_masks(self, videos, tmp_path):
        write_davis(tmp_path, videos)
        assert recognise(place(tmp_path))[0] == "davis"
        write_coco(tmp_path, videos)
        assert recognise(place(tmp_path)) == ("coco", tmp_path / "_annotations.coco.json")

    @pytest.mark.parametrize("images", ["train2017", "images/train2017"])
    def test_a_folder_of_annotations_beside_the_images(self, images, videos, tmp_path):
        write_coco(tmp_path / images, videos)
        (tmp_path / "annotations").mkdir()
        content = (tmp_path / images / "_annotations.coco.json").read_text()
        (tmp_path / images / "_annotations.coco.json").rename(tmp_path / "annotations" / "any.json")
        assert recognise(place(tmp_path / images)) == ("coco", tmp_path / "annotations" / "any.json")
        (tmp_path / "annotations" / "captions_train2017.json").write_text("{}")
        with pytest.raises(UserError, match=r"there are 2: any\.json, captions_train2017\.json; name them"):
            recognise(place(tmp_path / images))
        (tmp_path / "annotations" / "instances_train2017.json").write_text(content)
        found = ("coco", tmp_path / "annotations" / "instances_train2017.json")
        assert recognise(place(tmp_path / images)) == found
        assert recognise(place(tmp_path / images, format="coco")) == found
        assert recognise(place(tmp_path / images, tmp_path / "annotations" / "any.json"))[0] == "coco"

    def test_the_folder_s_own_file_above_it(self, videos, tmp_path):
        write_coco(tmp_path / "train", videos)
        (tmp_path / "train" / "_annotations.coco.json").rename(tmp_path / "instances_train.json")
        for kind in ("auto", "coco"):
            assert recognise(place(tmp_path / "train", format=kind)) == ("coco", tmp_path / "instances_train.json")
        (tmp_path / "instances_train.json").rename(tmp_path / "instances_val.json")
        with pytest.raises(UserError, match=r"no annotations found.*instances_train\.json above it"):
            recognise(place(tmp_path / "train"))

    def test_folders_of_masks_are_of_videos_or_of_stills(self, videos, tmp_path):
        write_davis(tmp_path / "d", videos)
        write_folder(tmp_path / "f", videos)
        assert recognise(place(tmp_path / "d/JPEGImages", tmp_path / "d/Annotations"))[0] == "davis"
        assert recognise(place(tmp_path / "f/images", tmp_path / "f/masks"))[0] == "folder"
        assert recognise(place(tmp_path / "f/images"))[0] == "folder"
        name = videos.videos[0].video_id
        (tmp_path / "d/JPEGImages" / name).rename(tmp_path / "JPEGImages")
        (tmp_path / "d/Annotations" / name).rename(tmp_path / "Annotations")
        assert recognise(place(tmp_path))[0] == "davis", "one video, going by the folders' names"
        assert recognise(place(tmp_path / "JPEGImages", tmp_path / "Annotations"))[0] == "davis"

    def test_masks_among_the_images(self, videos, tmp_path):
        write_folder(tmp_path, videos)
        for mask in (tmp_path / "masks").iterdir():
            mask.rename(tmp_path / "images" / f"{mask.stem}_mask.png")
        (tmp_path / "masks").rmdir()
        assert recognise(place(tmp_path / "images"))[0] == "folder"

    def test_where_nothing_fits_it_is_told_what_was_looked_for(self, videos, tmp_path):
        write_folder(tmp_path, videos)
        empty = tmp_path / "empty"
        empty.mkdir()
        with pytest.raises(UserError) as caught:
            recognise(place(empty))
        message = str(caught.value)
        assert message.startswith(f"{empty}: no annotations found")
        assert all(
            word in message for word in ("_annotations.coco.json", "_manual.json", "Annotations", "NAME_mask.png")
        )
        with pytest.raises(UserError, match=r"empty: no annotations in this folder: looked for one \.json"):
            recognise(place(tmp_path / "images", empty))

    @pytest.mark.parametrize("kind", ["auto", "coco", "davis", "folder", "sav", "ytvis"])
    def test_what_is_missing_is_told(self, kind, tmp_path):
        with pytest.raises(UserError, match="nowhere: no such image folder"):
            recognise(place(tmp_path / "nowhere", format=kind))
        with pytest.raises(UserError, match=r"nowhere\.json: no such annotation file"):
            recognise(place(tmp_path, tmp_path / "nowhere.json", format=kind))


class TestLoading:
    def test_damage_is_summarised(self, videos, tmp_path):
        write_davis(tmp_path, videos)
        for mask in (tmp_path / "Annotations").rglob("*.png"):
            mask.write_bytes(b"")
        with pytest.raises(UserError) as caught:
            load(place(tmp_path))
        assert str(caught.value).count("the file is empty") == 4

    def test_what_is_left_out_is_counted(self, videos, tmp_path):
        write_davis(tmp_path, videos)
        for mask in (tmp_path / "Annotations" / videos.videos[0].video_id).iterdir():
            mask.unlink()
        data = load(place(tmp_path))
        assert data.notes == {"videos without masks, left out": 1}
        for mask in (tmp_path / "Annotations").rglob("*.png"):
            mask.unlink()
        with pytest.raises(UserError, match="nothing in it is usable: 2 videos without masks, left out"):
            load(place(tmp_path, format="davis"))


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
    def test_a_file_of_frames_as_davis_2016_has_it_names_their_videos(self, line, videos, tmp_path):
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
        with pytest.raises(UserError, match=rf"val\.txt: the list of videos {message}|{message}"):
            wanted_videos(str(tmp_path / "val.txt"))
        with pytest.raises(UserError, match="cannot be read: No such file"):
            wanted_videos(str(tmp_path / "none.txt"))


def test_real_data_of_every_format(shared_data):
    expected = {
        ("vid_puma", None): ("davis", 2),
        ("vid_vocalfolds", None): ("davis", 1),
        ("coco_flakes_microscopy/test", None): ("coco", 10),
        ("coco_cells_rle/val", None): ("coco", 5),
        ("coco_cells_rle/val", "coco_cells_rle/instances_val.json"): ("coco", 5),
        ("sav", None): ("sav", 2),
        ("odd_inputs/datumaro/mots_dataset/train", None): ("folder", 2),
    }
    for (folder, ann_file), (kind, count) in expected.items():
        where = place(shared_data(folder), None if ann_file is None else shared_data(ann_file))
        assert recognise(where)[0] == kind
        assert len(open_source(where, 200)) == count
