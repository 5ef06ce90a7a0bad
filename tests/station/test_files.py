import pytest

from station.files import OutputError, write_file


def test_file_is_replaced_whole_and_nothing_is_left_beside_it(tmp_path):
    path = tmp_path / "new" / "a.json"
    write_file(path, b"first")
    write_file(path, b"second")
    assert path.read_bytes() == b"second"
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_failure_names_the_file_and_leaves_nothing(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(OutputError, match="a: cannot be written"):
        write_file(tmp_path / "a", b"data")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
