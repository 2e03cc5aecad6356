"""Boxes of rows, and those of RefCOCO+."""

import json
import pickle

import pytest
from accelerate import Accelerator

from albef_hf.data.boxes import add_refcoco_boxes


def test_invalid_files_of_references_are_refused(tmp_path):
    def write_files(references: bytes, candidates: str) -> None:
        (tmp_path / "refs(unc).p").write_bytes(references)
        (tmp_path / "instances.json").write_text(json.dumps({"annotations": [{"id": 9, "bbox": [1, 2, 3, 4]}]}))
        (tmp_path / "dets.json").write_text(candidates)

    reference = {"ref_id": 5, "ann_id": 9, "image_id": 3, "split": "val"}
    for references, candidates, message in (
        (b"", "{}", "needs refs"),
        (pickle.dumps([7]), "{}", "needs refs"),
        (pickle.dumps([reference]), "[1]", "not a JSON object of boxes"),
    ):
        write_files(references, candidates)
        with pytest.raises(ValueError, match=message):
            add_refcoco_boxes([{"ref_id": 5}], tmp_path)
    write_files(pickle.dumps([reference | {"ann_id": 8}]), '{"3": null}')
    (row,) = add_refcoco_boxes([{"ref_id": 5}], tmp_path)
    assert row["bbox"] is None and row["boxes"] == [], "counted in the evaluation"


def test_pickled_code_in_references_is_not_executed(tmp_path):
    references = [{"ref_id": 5, "ann_id": 9, "image_id": 3, "split": "testA"}]
    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps(references, protocol=2))
    (tmp_path / "instances.json").write_text(json.dumps({"annotations": [{"id": 9, "bbox": [1, 2, 3, 4]}]}))
    (tmp_path / "dets.json").write_text(json.dumps({"3": [[1, 2, 3, 4, 0.9], [5, 6, 7, 8, 0.1]]}))
    (row,) = add_refcoco_boxes([{"image": "a.png", "text": "it", "ref_id": 5}], tmp_path)
    assert (row["bbox"], row["boxes"], row["split"]) == ([1, 2, 3, 4], [[1, 2, 3, 4], [5, 6, 7, 8]], "testA")
    (tmp_path / "cocos.json").write_text(json.dumps({"3": [[7, 7, 7, 7]]}))
    (row,) = add_refcoco_boxes([{"ref_id": 5}], tmp_path, "cocos.json")
    assert row["boxes"] == [[7, 7, 7, 7]]
    with pytest.raises(ValueError, match="no reference 6"):
        add_refcoco_boxes([{"ref_id": 6}], tmp_path)
    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps(Accelerator))
    with pytest.raises(ValueError, match="contains pickled code .*could be malicious, and was not"):
        add_refcoco_boxes([{"ref_id": 5}], tmp_path)
