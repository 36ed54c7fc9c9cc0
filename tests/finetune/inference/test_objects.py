"""Prompts as text: which objects they ask for, and where."""

import numpy as np
import pytest

from data_prep.common.errors import UserError
from finetune.inference.objects import (
    Prompt,
    Wanted,
    parse_object,
    parse_objects,
    place,
    with_rough_masks,
)


def test_objects_are_separated_by_semicolons():
    first, second = parse_objects("5,6,1 7,8,0; 20,30,1", first=4)
    assert (first.value, second.value) == (4, 5)
    prompt = first.prompts[None]
    assert prompt.points.tolist() == [[5, 6], [7, 8]] and prompt.labels.tolist() == [1, 0]
    assert prompt.box is None and second.prompts[None].points.tolist() == [[20, 30]]
    assert not first.carry and first.name == "object 4"
    only_box, both = parse_objects("; 5,6,1", "1, 2, 3, 4; 5,5,9,9")
    assert len(only_box.prompts[None].points) == 0
    assert only_box.prompts[None].box.tolist() == [1, 2, 3, 4]
    assert both.prompts[None].box.tolist() == [5, 5, 9, 9] and len(both.prompts[None].points) == 1
    assert [each.target for each in parse_objects(target="disc; cup")] == ["disc", "cup"]
    assert parse_objects() == []


def test_texts_are_for_every_slice_or_go_with_clicks():
    alone, clicked = parse_objects("; 5,6,3,1", text="the liver; a tumour")
    assert alone.prompts[None].text == alone.name == "the liver"
    assert set(place(alone, 3, None).prompts) == {0, 1, 2} and not place(alone, 3, None).carry
    assert list(clicked.prompts) == [3] and clicked.prompts[3].text == "a tumour" and clicked.carry


def test_prompts_may_name_their_slice():
    (wanted,) = parse_objects("5,6,3,1 7,8,9,0 1,1,3,0", "1,2,8,9,3 0,0,4,4,1")
    assert wanted.carry and list(wanted.prompts) == [1, 3, 9]
    assert wanted.prompts[3].points.tolist() == [[5, 6], [1, 1]]
    assert wanted.prompts[3].box.tolist() == [1, 2, 8, 9]
    assert wanted.prompts[1].box.tolist() == [0, 0, 4, 4] and len(wanted.prompts[1].points) == 0
    assert wanted.prompts[9].box is None and wanted.prompts[9].labels.tolist() == [0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"clicks": "1,2,1; 3,4,1", "box": "1,2,3,4"}, "box: 1 objects and clicks: 2"),
        ({"clicks": "1,2,1;"}, "no prompt: an object has neither"),
        ({"clicks": "1,2,3,1 4,5,1"}, "some of an object name their slice"),
        ({"clicks": "1,2,1", "box": "1,2,3,4,5"}, "some of an object name their slice"),
        ({"clicks": "1,2,1.5,1"}, "names slice 1.5"),
        ({"clicks": "1,2,-1,1"}, "names slice -1"),
        ({"clicks": "1,2"}, "not of the form x,y,label or x,y,slice,label"),
        ({"box": "1,2,3,4 1,1,2,2"}, "another box of an object that has one"),
        ({"box": "1,2,3,4,5,6"}, "not of the form x0,y0,x1,y1 or x0,y0,x1,y1,slice"),
        ({"clicks": "1,2,1", "target": "disc"}, "target: is for models without prompts"),
        ({"text": "a disc", "target": "disc"}, "target: is for models without prompts"),
        ({"text": "a; b", "clicks": "1,2,1"}, "clicks: 1 objects and text: 2 objects; give each"),
        ({"clicks": "1,1,1;1,1,1", "first": 254}, "a mask holds objects 1 to 254"),
    ],
)
def test_what_is_not_clear_is_refused(given, message):
    with pytest.raises(UserError, match=message):
        parse_objects(**given)


def test_each_prompt_finds_its_slice():
    plain, named = Wanted(1, parse_object("5,6,1")), Wanted(1, parse_object("5,6,2,1"), carry=True)
    assert list(place(plain, 1, None).prompts) == [0]
    assert list(place(plain, 9, 4).prompts) == [4] and not place(plain, 9, 4).carry
    assert list(place(named, 9, None).prompts) == [2] and place(named, 9, None).carry
    (target,) = parse_objects(target="disc")
    assert list(place(target, 4, None).prompts) == [0, 1, 2, 3]
    assert list(place(target, 4, 2).prompts) == [2]
    for wanted, depth, chosen, message in (
        (plain, 9, None, "has 9 slices; choose one of 0 to 8, or name it in each prompt"),
        (named, 9, 2, "leave --slice out"),
        (named, 2, None, "2 is not one of the image's slices, 0 to 1"),
    ):
        with pytest.raises(UserError, match=message):
            place(wanted, depth, chosen)


def test_rough_masks_join_the_objects_of_their_value():
    masks = np.zeros((5, 6, 6), np.uint8)
    masks[1:3, :2], masks[2, 4:] = 1, 3
    (clicked,) = parse_objects("0,0,2,1")
    one, three = with_rough_masks([clicked], masks, None)
    assert list(one.prompts) == [2, 1] and one.carry and three.carry and three.value == 3
    assert one.prompts[2].points.tolist() == [[0, 0]]
    assert np.array_equal(one.prompts[2].mask, masks[2] == 1)
    assert len(one.prompts[1].points) == 0 and one.prompts[1].mask.sum() == 12
    (chosen,) = with_rough_masks([], masks, 1)
    assert list(chosen.prompts) == [1] and not chosen.carry
    other = Wanted(2, {1: Prompt(np.ones((1, 2)), np.ones(1, int))})
    assert [each.value for each in with_rough_masks([other], masks, 1)] == [1, 2]
    with pytest.raises(UserError, match="it is empty in slice 0"):
        with_rough_masks([], masks, 0)


def test_a_rough_mask_of_one_object_is_for_the_object_that_is_asked_for():
    masks = np.zeros((1, 6, 6), np.uint8)
    masks[0, :2] = 1
    (second,) = with_rough_masks([], masks, None, 2)
    assert second.value == 2 and second.prompts[0].mask.sum() == 12
    clicked = parse_objects("0,0,1", first=2)[0]
    (both,) = with_rough_masks([place(clicked, 1, None)], masks, None, 2)
    assert both.value == 2 and both.prompts[0].mask.any() and len(both.prompts[0].points) == 1
    masks[masks > 0] = 7
    (kept,) = with_rough_masks([], masks, None)
    assert kept.value == 7  # as the file says, where nothing else is said
    (first,) = with_rough_masks([place(parse_objects("0,0,1")[0], 1, None)], masks, None)
    assert first.value == 1 and first.prompts[0].mask.any()
    several = [place(each, 1, None) for each in parse_objects("0,0,1; 1,1,1")]
    with pytest.raises(UserError, match="it holds object 7, and the prompts are for 1, 2"):
        with_rough_masks(several, masks, None)
    masks[0, 4:] = 8
    with pytest.raises(UserError, match="value: the first object of the mask is 7, not 2; leave"):
        with_rough_masks([], masks, None, 2)
    assert [each.value for each in with_rough_masks([], masks, None, 7)] == [7, 8]
