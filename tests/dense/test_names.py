import pytest

from hscc_search.dense import names
from hscc_search.dense.names import check_network_name, declared_names
from hscc_search.errors import ModelError
from hscc_search.torchvision_operators import make_importable


def test_the_names_read_from_the_source_are_those_that_the_libraries_list():
    make_importable()
    import timm
    from torchvision import models

    assert declared_names("torchvision") == sorted(models.list_models(module=models))
    assert declared_names("timm") == sorted(timm.list_models())


@pytest.mark.parametrize("name", ["digits_cnn", "alexnet", "ghostnetv2_100", "timm/resnet18", "own.networks:make"])
def test_a_name_of_a_network_is_let_through(name):
    check_network_name(name)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("resnet81", "did you mean resnet18 or "),
        ("timm/ghostnetv2", "ghostnetv2_100"),
        ("digits_cn", "give digits_cnn"),
        ("raft_small", "give digits_cnn, a classifier such as alexnet"),
        ("", "give digits_cnn"),
    ],
)
def test_a_mistyped_name_is_answered_with_the_nearest(name, nearest):
    with pytest.raises(ModelError, match=f"no network named '{name}' in torchvision or timm: ") as refused:
        check_network_name(name)
    assert nearest in str(refused.value)


def test_no_name_is_refused_where_a_library_comes_without_source(monkeypatch):
    monkeypatch.setattr(names, "declared_names", lambda library: [])
    check_network_name("resnet81")
