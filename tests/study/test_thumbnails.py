import base64
import io
from dataclasses import replace

import numpy as np
import pytest
from conftest import SMALL
from PIL import Image

from hscc_search.errors import StudyError
from hscc_search.study.study import run_study
from hscc_search.study.thumbnails import thumbnails


def test_thumbnails_are_the_validation_images_of_the_study_and_of_no_other(digits):
    study = run_study(digits(trials=1, **SMALL))
    drawn = thumbnails(study.record, study.config)([0, 5])
    assert list(drawn) == [0, 5]
    for address in drawn.values():
        picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))))
        assert picture.shape == (8, 8, 3)
        assert picture.max() > 200
    with pytest.raises(StudyError, match="other images"):
        thumbnails(replace(study.record, fingerprint="of others"), study.config)
    with pytest.raises(StudyError, match="another split"):
        thumbnails(replace(study.record, labels=study.record.labels[::-1]), study.config)
