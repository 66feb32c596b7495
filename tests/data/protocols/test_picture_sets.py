"""ImageNet, Kinetics and UCF101: the ways in which they are published."""

import numpy as np
import pytest
from reference import published_sets as sets

from bridle.data.protocols import read_protocol
from bridle.errors import DataError

FLAT = {"val/ILSVRC2012_val_00000001.JPEG": "n02119789", "val/ILSVRC2012_val_00000002.JPEG": "n01440764"}


def labels(data, split):
    columns = data.manifest.columns
    cells = zip(data.manifest.entries, columns[data.columns.label], columns["split"], strict=True)
    return {entry.key: label for entry, label, part in cells if part == split}


# ImageNet


def kaggle(root):
    rows = [
        ("ILSVRC2012_val_00000002", "n01440764 1 2 3 4 n01440764 5 6 7 8 "),
        ("ILSVRC2012_val_00000001", "n02119789 1 2 3 4 "),
    ]
    sets.table(root / "LOC_val_solution.csv", ("ImageId", "PredictionString"), rows)
    sets.text(root / "LOC_synset_mapping.txt", "n01440764 tench, Tinca tinca", "n02119789 kit fox, Vulpes macrotis")


def devkit(root):
    """Class numbers of the challenge, in which the second class by its id is number 1."""
    sets.text(root / "ILSVRC2012_validation_ground_truth.txt", "1", "2")


def synsets(root, name="meta.mat"):
    savemat = pytest.importorskip("scipy.io", reason="scipy is not installed (pip install 'bridle[demo]')").savemat
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O")]
    rows = [(1, "n02119789", "kit fox", "a fox"), (2, "n01440764", "tench", "a fish"), (1001, "n00001740", "entity", "")]
    savemat(root / name, {"synsets": np.array(rows, dtype=kinds)})


def test_imagenet_in_folders_of_classes(tmp_path):
    data = read_protocol("imagenet", sets.imagenet(tmp_path))
    assert labels(data, "train") == {f"train/{wnid}/{wnid}_{i}.JPEG": wnid for wnid in sets.WNIDS for i in (1, 2)}
    assert set(labels(data, "test").values()) == set(sets.WNIDS)
    assert set(data.manifest.columns["name"]) == {""}
    assert data.notes == ("2 of 1000 classes have clips",)


def test_imagenet_of_kaggle(tmp_path):
    sets.imagenet(tmp_path / "ILSVRC" / "Data" / "CLS-LOC", flat=True)
    kaggle(tmp_path)
    data = read_protocol("imagenet", tmp_path)
    assert labels(data, "test") == FLAT
    assert data.manifest.columns["name"][-2:] == ["kit fox, Vulpes macrotis", "tench, Tinca tinca"]


def test_imagenet_with_a_map_of_classes(tmp_path):
    root = sets.imagenet(tmp_path, flat=True)
    devkit(root / "ILSVRC2012_devkit_t12" / "data")
    sets.text(root / "devkit" / "data" / "map_clsloc.txt", "n02119789 1 kit_fox", "n01440764 2 tench")
    data = read_protocol("imagenet", root)
    assert labels(data, "test") == FLAT
    assert data.manifest.columns["name"][-2:] == ["kit fox", "tench"]


def test_imagenet_with_the_development_kit_of_2012(tmp_path):
    root = sets.imagenet(tmp_path, flat=True)
    devkit(root / "ILSVRC2012_devkit_t12" / "data")
    synsets(root / "ILSVRC2012_devkit_t12" / "data")
    assert labels(read_protocol("imagenet", root), "test") == FLAT


def test_what_imagenet_lacks_is_named(tmp_path):
    root = sets.imagenet(tmp_path, flat=True)
    with pytest.raises(DataError, match=r"no LOC_val_solution.csv or ILSVRC2012_validation_ground_truth.txt beside it"):
        read_protocol("imagenet", root)
    devkit(root)
    with pytest.raises(DataError, match=r"has no map_clsloc.txt or meta.mat of the devkit"):
        read_protocol("imagenet", root)
    (root / "meta.mat").write_bytes(b"no file of matlab")
    with pytest.raises(DataError, match=r"meta.mat is not the devkit's list of classes"):
        pytest.importorskip("scipy.io", reason="scipy is not installed (pip install 'bridle[demo]')")
        read_protocol("imagenet", root)
    sets.text(root / "map_clsloc.txt", "n02119789 1 kit_fox")
    with pytest.raises(DataError, match="line 2 is '2'; it must be a number of one of the 1 classes"):
        read_protocol("imagenet", root)
    sets.text(root / "map_clsloc.txt", "n02119789 kit_fox")
    with pytest.raises(DataError, match="is no line such as 'n02119789 1 kit_fox'"):
        read_protocol("imagenet", root)
    kaggle(root)
    sets.picture(root / "val" / "another.JPEG")
    with pytest.raises(DataError, match=r"another.JPEG is not in the ground truth, which has 2 pictures"):
        read_protocol("imagenet", root)
    (root / "val" / "another.JPEG").unlink()
    (root / "val" / "ILSVRC2012_val_00000001.JPEG").unlink()
    (bad,) = read_protocol("imagenet", root).manifest.bad
    assert (bad.key, bad.reason) == ("val/ILSVRC2012_val_00000001.JPEG", "missing")


def test_imagenet_needs_both_parts(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="has no folder val, which imagenet"):
        read_protocol("imagenet", tmp_path)
    (tmp_path / "val").mkdir()
    with pytest.raises(DataError, match=r"has no pictures in train/WNID/"):
        read_protocol("imagenet", tmp_path)


# Kinetics


def test_kinetics_of_cvdf(tmp_path):
    data = read_protocol("kinetics-400", sets.kinetics(tmp_path))
    assert labels(data, "train") == {"train/-3B32lodo2M_000059_000069.mp4": "abseiling"}
    assert labels(data, "test") == {"val/_dbcJuKJQNs_000040_000050.mp4": "air drumming"}
    assert data.manifest.columns["youtube_id"] == ["-3B32lodo2M", "_dbcJuKJQNs"]
    assert (data.num_missing, data.manifest.bad) == (1, ())
    assert data.notes[0] == "1 of 3 clips of the published lists are not on the disk"


@pytest.mark.parametrize("name", ["abseiling/-3B32lodo2M_000059_000069.mp4", "-3B32lodo2M_59_69.webm", "-3B32lodo2M.mkv"])
def test_clips_of_kinetics_are_found_by_their_names(tmp_path, name):
    root = sets.kinetics(tmp_path)
    (root / "train" / "-3B32lodo2M_000059_000069.mp4").unlink()
    (root / "train" / name).parent.mkdir(exist_ok=True)
    (root / "train" / name).write_bytes((root / "val" / "_dbcJuKJQNs_000040_000050.mp4").read_bytes())
    assert labels(read_protocol("kinetics-700", root), "train") == {f"train/{name}": "abseiling"}


def test_tables_of_kinetics_have_several_names(tmp_path):
    root = sets.kinetics(tmp_path)
    annotations = root / "annotations"
    (annotations / "val.csv").rename(root / "kinetics-400_validate.csv")
    assert len(read_protocol("kinetics-400", root).manifest) == 2
    whole = (annotations / "train.csv").read_text()
    (annotations / "train.txt").write_text(whole)  # of Kinetics-600 this one is complete
    (annotations / "train.csv").write_text("\n".join(whole.splitlines()[:1]) + "\n")
    assert len(read_protocol("kinetics-600", root).manifest) == 2
    (root / "kinetics-400_validate.csv").unlink()
    with pytest.raises(DataError, match=r"has no val.csv, which kinetics-400 is read from"):
        read_protocol("kinetics-400", root)


@pytest.mark.parametrize("separator", [" ", ",", "\t"])
def test_lists_of_path_and_label(tmp_path, separator):
    first = sets.film(tmp_path / "clips" / "air drumming" / "a b.mp4")
    sets.film(tmp_path / "val" / "c.mp4")
    sets.text(
        tmp_path / "train.csv", f"clips/air drumming/a b.mp4{separator}1", f"clips/gone.mp4{separator}0", f"{first}{separator}7"
    )
    sets.text(tmp_path / "val.csv", f"c.mp4{separator}0")
    data = read_protocol("kinetics-400", tmp_path)
    assert labels(data, "train") == {"clips/air drumming/a b.mp4": "1", str(first): "7"}
    assert labels(data, "test") == {"c.mp4": "0"}
    assert data.num_missing == 1
    assert data.notes[0].startswith("labels are the numbers of the lists")


def test_what_is_wrong_with_a_table_of_kinetics_is_said(tmp_path):
    root = sets.kinetics(tmp_path)
    table = root / "annotations" / "train.csv"
    whole = table.read_text()
    for content, message in (
        ("", r"train.csv is empty; it must be the published table"),
        (whole + "clapping,x,soon,later,train,0\n", "clip x is from 'soon' to 'later'; both must be seconds"),
        (whole.replace("label", "verb"), "has no column 'label'"),
        ("clips/a.mp4\n", r"train.csv line 1 is 'clips/a.mp4'; it must be a path and the number of a class"),
    ):
        table.write_text(content)
        with pytest.raises(DataError, match=message):
            read_protocol("kinetics-400", root)


# UCF101


@pytest.mark.parametrize("number", [1, 2, 3])
def test_splits_of_ucf101(tmp_path, number):
    data = read_protocol(f"ucf101-{number}", sets.ucf101(tmp_path))
    films = (("Archery", "Archery"), ("HandstandPushups", "HandStandPushups"))
    assert labels(data, "test") == {f"{folder}/v_{word}_g0{number}_c01.avi": folder for folder, word in films}
    assert data.manifest.columns["group"][-2:] == [f"Archery_g0{number}", f"HandstandPushups_g0{number}"]
    assert len(labels(data, "train")) == 4


def test_ucf101_unpacked_without_folders_and_with_a_film_missing(tmp_path):
    root = sets.ucf101(tmp_path)
    for path in list((root / "UCF-101").glob("*/*.avi")):
        path.rename(root / "UCF-101" / path.name)
    (root / "UCF-101" / "v_Archery_g02_c01.avi").unlink()
    data = read_protocol("ucf101-1", root / "ucfTrainTestlist")  # the lists' folder will do
    assert len(data.manifest) == 5
    assert [(bad.key, bad.reason) for bad in data.manifest.bad] == [("Archery/v_Archery_g02_c01.avi", "missing")]


def test_list_of_ucf101_must_be_one(tmp_path):
    root = sets.ucf101(tmp_path)
    sets.text(root / "ucfTrainTestlist" / "testlist02.txt", "v_Archery.avi 1")
    with pytest.raises(DataError, match=r"'v_Archery.avi 1' is no line such as 'Archery/v_Archery_g01_c01.avi'"):
        read_protocol("ucf101-2", root)
    (root / "ucfTrainTestlist" / "testlist02.txt").unlink()
    with pytest.raises(DataError, match=r"has no testlist02.txt, which ucf101-2"):
        read_protocol("ucf101-2", root)
