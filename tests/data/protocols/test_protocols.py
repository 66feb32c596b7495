"""What all protocols have in common: names, columns, notes, errors; and a tiny copy of each set is read whole."""

import shutil

import pytest
from reference import published_sets as sets

from bridle.data.labels import tag_labels
from bridle.data.medium import MEDIA
from bridle.data.protocols import PROTOCOLS, find_protocol, read_protocol
from bridle.data.protocols.audioset import SEPARATOR
from bridle.errors import ConfigError, DataError
from bridle.eval.splits import splits_from_folds, splits_from_split
from bridle.media.image import decode_image

# Entries and bad files, and (train, test) clips of each official split, by the tiny sets' builders.
PARTS = {
    "esc-50": [(24, 6)] * 5,
    "esc-10": [(16, 4)] * 5,
    "urbansound8k": [(18, 2)] * 10,
    "speech-commands-v1": [(9, 3)],
    "speech-commands-v2": [(9, 3)],
    "cifar-10": [(20, 4)],
    "cifar-100": [(4, 4)],
    "cifar-100-coarse": [(4, 4)],
    "imagenet": [(4, 2)],
    "kinetics-400": [(1, 1)],
    "kinetics-600": [(1, 1)],
    "kinetics-700": [(1, 1)],
    "ucf101-1": [(4, 2)],
    "ucf101-2": [(4, 2)],
    "ucf101-3": [(4, 2)],
}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder with each tiny set; copy one before changing it."""
    folder = tmp_path_factory.mktemp("published")
    made = {}
    for name, builder in sets.BUILDERS.items():
        made[name] = folder / builder.__name__
        if not made[name].exists():
            builder(made[name])
    return made


@pytest.mark.parametrize("name", sets.BUILDERS)
def test_every_set_is_read_in_its_own_layout(published, name):
    data = read_protocol(name, published[name])
    manifest, columns = data.manifest, data.columns
    assert manifest.bad == ()
    assert all(len(cells) == len(manifest) for cells in manifest.columns.values())
    assert data.medium is MEDIA[PROTOCOLS[name].medium]
    splits = (
        splits_from_folds(manifest.columns[columns.fold])
        if columns.fold
        else splits_from_split(manifest.columns[columns.split])
    )
    assert [(len(split.train_index), len(split.test_index)) for split in splits] == PARTS[name]
    if columns.group:
        groups = manifest.columns[columns.group]
        for split in splits:
            assert not {groups[i] for i in split.train_index} & {groups[i] for i in split.test_index}
    for entry in manifest.entries:
        with entry.opened() as source:
            if data.medium.name == "image":
                assert decode_image(source).width in (8, 32)
            else:
                assert data.medium.probe(source, entry.key).duration_seconds == entry.duration_seconds > 0


def test_the_folder_that_holds_the_set_will_do(published):
    folder = published["esc-50"].parent
    assert {**read_protocol("esc-50", folder).manifest.columns} == read_protocol("esc-50", published["esc-50"]).manifest.columns
    assert len(read_protocol("cifar-100", folder).manifest) == 8  # also where another set has a folder 'meta'


def test_durations_are_read_only_if_asked_for(published):
    assert {entry.duration_seconds for entry in read_protocol("esc-10", published["esc-10"], probe=False).manifest.entries} == {
        0.0
    }
    assert {entry.duration_seconds for entry in read_protocol("esc-10", published["esc-10"]).manifest.entries} == {0.05}


def test_keys_do_not_depend_on_where_the_set_lies(published, tmp_path):
    copy = tmp_path / "elsewhere"
    shutil.copytree(published["ucf101-1"], copy)
    here, there = read_protocol("ucf101-1", published["ucf101-1"]).manifest, read_protocol("ucf101-1", copy).manifest
    assert here.fingerprint == there.fingerprint


@pytest.mark.parametrize(("name", "found"), [("ESC50", "esc-50"), ("cifar_100", "cifar-100"), ("UCF101-2", "ucf101-2")])
def test_names_are_found_whatever_their_spelling(name, found):
    assert find_protocol(name).name == found


def test_unknown_name_is_an_error_that_names_the_nearest():
    with pytest.raises(ConfigError, match=r"there is no protocol 'esc-5'; did you mean 'esc-50'\?"):
        find_protocol("esc-5")
    with pytest.raises(ConfigError, match="known are esc-50, esc-10, urbansound8k"):
        find_protocol("mnist!")


@pytest.mark.parametrize("name", PROTOCOLS)
def test_an_empty_folder_is_one_line_that_says_what_is_missing(tmp_path, name):
    with pytest.raises(DataError, match=rf"has no .*which {name} is read from; get it by: bridle fetch {name}") as error:
        read_protocol(name, tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match="is no folder"):
        read_protocol(name, tmp_path / "gone")


def test_facts_of_every_protocol():
    for name, protocol in PROTOCOLS.items():
        about = protocol.about
        assert (name, protocol.multi_label) == (protocol.name, protocol.metric == "mAP")
        assert about.home.startswith("https://") and all((about.title, about.licence, about.citation))
        assert (protocol.fold is None) != (protocol.split is None)
    assert len({protocol.name.replace("-", "") for protocol in PROTOCOLS.values()}) == len(PROTOCOLS)


def test_fewer_classes_are_a_note_and_more_are_an_error(tmp_path):
    root = sets.esc50(tmp_path / "ESC-50")
    assert read_protocol("esc-10", root, probe=False).notes == ("2 of 10 classes have clips",)
    table = root / "meta" / "esc50.csv"
    rows = [(f"{i}.wav", i % 5 + 1, i, f"class {i:02d}", True, i, "A") for i in range(11)]
    sets.table(table, ("filename", "fold", "target", "category", "esc10", "src_file", "take"), rows)
    for i in range(11):
        sets.sound(root / "audio" / f"{i}.wav")
    with pytest.raises(DataError, match="there are 11 classes where esc-10 has 10, such as 'class 10'"):
        read_protocol("esc-10", root, probe=False)


def test_missing_and_broken_files_are_bad_files(tmp_path):
    root = sets.esc50(tmp_path)
    (root / "audio" / "1-10-A-0.wav").unlink()
    (root / "audio" / "2-20-A-0.wav").write_bytes(b"no sound")
    data = read_protocol("esc-50", root)
    bad = {file.key: file.reason for file in data.manifest.bad}
    assert bad.keys() == {"audio/1-10-A-0.wav", "audio/2-20-A-0.wav"}
    assert bad["audio/1-10-A-0.wav"] == "missing"
    assert (len(data.manifest), data.manifest.num_files, data.num_missing) == (28, 30, 0)
    assert data.manifest.columns["filename"] == [entry.key.removeprefix("audio/") for entry in data.manifest.entries]
    for path in (root / "audio").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"no clip that can be read: 30 are not there or unreadable, the first .* \(missing\)"):
        read_protocol("esc-50", root)


def test_groups_that_the_official_folds_tear_are_not_used(tmp_path):
    root = sets.urbansound8k(tmp_path)
    table = root / "metadata" / "UrbanSound8K.csv"
    table.write_text(table.read_text().replace("1003-3-0-0.wav,1003", "1003-3-0-0.wav,2003"))
    data = read_protocol("urbansound8k", root)
    assert data.columns.group is None
    assert "1 groups of column 'fsID', such as '2003', are in several parts as published" in data.notes[-1]


def test_a_table_without_a_column_is_an_error(tmp_path):
    root = sets.esc50(tmp_path)
    table = root / "meta" / "esc50.csv"
    whole = table.read_text()
    table.write_text(whole.replace("category", "klass"))
    with pytest.raises(DataError, match=r"esc50.csv has no column 'category' but filename, fold"):
        read_protocol("esc-50", root)
    table.write_bytes(whole.encode() + b"\xff\xfe")
    with pytest.raises(DataError, match="cannot be read as a table"):
        read_protocol("esc-50", root)
    table.write_text(whole + "a,b,c,d,e,f,g,h\n")
    with pytest.raises(DataError, match="line 32 has more cells than its 7 columns"):
        read_protocol("esc-50", root)


def test_labels_of_audioset_are_the_published_ones(tmp_path):
    sets.audioset(tmp_path)
    for name in ("--PJHxphWEs", "_-_-_-_-_-_", "evaluation1"):
        sets.sound(tmp_path / f"{name}.wav")
    data = read_protocol("audioset-20k", tmp_path)
    assert data.protocol.multi_label
    assert data.protocol.separator == SEPARATOR
    labels = tag_labels(data.manifest.columns[data.columns.label], data.protocol.separator)
    assert labels.classes == tuple(sorted(name for _, name in sets.AUDIOSET_CLASSES))
    assert labels.targets.sum(dim=1).tolist() == [2, 1, 2]
