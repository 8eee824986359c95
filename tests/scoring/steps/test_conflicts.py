import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqa_grpo.scoring.steps.conflicts import conflict

PAIRS = json.loads((Path(__file__).parent / "pairs.json").read_text(encoding="utf-8"))
CONTRADICTIONS = PAIRS["contradictions_of_the_guides_kind"] + PAIRS["more_contradictions"]
# Two of the held-out paraphrases are lost to the guard: a kind of double negation, and two forms of one name.
LOST = {"The store is closed.", "The triangle has a right angle, so the Pythagorean theorem applies."}
# Of those about switches, units, times of day and the like, the guard loses two more to relations and three to a "no".
LOST_EVERYDAY = {
    "The picture hangs above the sofa.",
    "France won more medals than Italy.",
    "The bed is unmade.",
    "The rear wheel is flat.",
    "The shirt is cheap.",
}
KINDS = [
    ("number", "It costs 5 dollars.", "It costs 7 dollars."),
    ("number", "A line of 5 cm.", "A line of 5 m."),
    ("number", "It costs $20.", "It costs €20."),
    ("number", "two cats and three dogs", "three cats and two dogs"),
    ("number", "The rate is 45%.", "The rate is 54%."),
    ("number", "There are twenty-one flags.", "There are 22 flags."),
    ("number", "1,000 people", "10,000 people"),
    ("number", "5 million people", "5 thousand people"),
    ("number", "It is -5.", "It is 5."),
    ("number", "1/2 of it", "1/3 of it"),
    ("number", "The motor draws 5 mW.", "The motor draws 5 MW."),
    ("number", "a pressure of 3 MPa", "a pressure of 3 mPa"),
    ("time", "The clock shows 3:45.", "The clock shows 4:45."),
    ("time", "The shop opens at 9 am.", "The shop opens at 9 p.m."),
    ("time", "from 9:00 am to 5:00 pm", "from 9:00 pm to 5:00 am"),
    ("time", "It is 3:45 pm.", "It is 03:45 am."),
    ("colour", "a red car", "a green car"),
    ("colour", "The red cube is next to the blue ball.", "The blue cube is next to the red ball."),
    ("shape", "a blue circle", "a blue rectangle"),
    ("weekday", "It is on Monday.", "It is on Friday."),
    ("month", "in July", "in August 2010"),
    ("month", "It opened in March.", "It opened in May 2010."),
    ("ordinal", "the second column", "the 3rd column"),
    ("label", "The answer is option A.", "The answer is option B."),
    ("text", "The logo reads NOKIA.", "The logo reads SAMSUNG."),
    ("text", 'The sign says "Stop".', 'The sign says "Go".'),
    ("text", "The brand is Nokia.", "Samsung is the brand."),
    ("text", "It was taken in New York.", "It was taken in New Jersey."),
    ("direction", "the cup on the left", "the cup on the right"),
    ("direction", "The cup is above the plate.", "The cup is below the plate."),
    ("direction", "The man is inside.", "The man is outside."),
    ("direction", "The cube is left of the ball.", "The ball is left of the cube."),
    ("antonym", "The dog is larger than the cat.", "The cat is larger than the dog."),
    ("antonym", "Sales increase.", "Sales decrease."),
    ("antonym", "The window is open.", "The window is closed."),
    ("antonym", "There are more cats than dogs.", "There are fewer cats than dogs."),
    ("antonym", "The girl is older than the boy.", "The boy is older than the girl."),
    ("antonym", "The lamp is on.", "The lamp is switched off."),
    ("antonym", "The cat is on the table.", "A cat is off the table."),
    ("antonym", "The door is locked.", "The door is unlocked."),
    ("antonym", "a non-smoking room", "a smoking room"),
    ("antonym", "The tag is visible.", "The tag is invisible."),
    ("antonym", "Sales have doubled.", "Sales were halved."),
    ("antonym", "few people on the beach", "many people on the beach"),
    ("antonym", "He walks.", "She walks."),
    ("antonym", "The chair is soft.", "The chair is hard."),
    ("label", "The plane waits at gate B.", "The plane waits at gate C."),
    ("negation", "There is no dog and no cat.", "There is no dog but a cat."),
    ("negation", "There is a dog.", "There is no dog."),
    ("negation", "The phone is a Nokia.", "The phone isn't a Nokia."),
    ("negation", "This is a phone, but not a Nokia.", "This is a Nokia phone."),
]
NONE = [
    ("A red car is parked.", "A car is parked."),
    ("There are 3 apples.", "Three apples can be seen."),
    ("The rope is 50 cm long.", "The rope is 0.5 m long."),
    ("It costs $5.", "The price is 5 dollars."),
    ("The value is 1,000.", "The value is 1000.0"),
    ("The share is 50%.", "The share is 0.5."),
    ("45 % of users", "45 percent of users"),
    ("1/2 of it", "0.5 of it"),
    ("The one on the left is red.", "The left object of 3 is red."),
    ("The lamp is left of the bed.", "The bed is right of the lamp."),
    ("The lamp is above the bed.", "The bed is below the lamp."),
    ("The dog is larger than the cat.", "The cat is smaller than the dog."),
    ("In the upper left corner there is a cup.", "A cup is at the top left."),
    ("The right answer is five.", "5 is the answer, on the left."),
    ("The boy is younger than the girl.", "The girl is older than the boy."),
    ("The roof has no snow.", "There isn't any snow on the roof."),
    ("There is no text.", "The image does not contain any text."),
    ("The text is not visible.", "No text is visible."),
    ("It is a dog, not a cat.", "The animal is a dog."),
    ("It is a dog rather than a cat.", "The animal is a dog."),
    ("Steve Jobs founded Apple.", "Apple Inc was founded by Jobs."),
    ("The logo reads NOKIA.", "The phone's brand is Nokia."),
    ("The sign says ‘Stop’.", 'The word "STOP" is on the sign.'),
    ("The second bar is the tallest.", "The tallest bar is the 2nd one."),
    ("a grey cat", "a gray cat"),
    ("The motor draws 5 mW.", "The motor draws 0.005 W."),
    ("THE MOTOR DRAWS 5 MW", "The motor draws 5 mW."),
    ("The chip runs at 2 GHz.", "The chip runs at 2000 MHz."),
    ("It is 3:45 pm.", "It is 15:45."),
    ("The clock shows 3:45.", "It is 3:45 pm."),
    ("It is 3 pm.", "It is 3 o'clock."),
    ("The lamp is on the table.", "The lamp on the table is off."),
    ("I am at the office at 3 am.", "I am at the office at 3."),
    ("A form is filled in to inform the port of an import.", "The form informs the port of the import."),
    ("The bench is hard.", "It is easy to see the bench on the left of the road."),
    ("The locked door is next to the unlocked one.", "An unlocked door is beside a locked door."),
    ("THE LOGO IS RED", "The logo on the Phone is red"),
]


@pytest.mark.parametrize(("kind", "a", "b"), KINDS)
def test_each_kind_of_difference_is_a_conflict_both_ways(kind: str, a: str, b: str) -> None:
    assert conflict(a, b) == conflict(b, a) == kind


@pytest.mark.parametrize(("a", "b"), NONE)
def test_saying_the_same_or_less_is_no_conflict(a: str, b: str) -> None:
    assert conflict(a, b) is None


def test_every_contradiction_of_the_table_is_seen_by_the_guard_alone() -> None:
    assert [pair for pair in CONTRADICTIONS if conflict(*pair) is None] == []


def test_the_guard_lets_paraphrases_and_other_facts_pass() -> None:
    pairs = PAIRS["paraphrases_to_choose_by"] + PAIRS["paraphrases_held_out"] + PAIRS["different_facts"]
    assert {a for a, b in pairs if conflict(a, b)} == LOST


def test_the_guard_tells_everyday_opposites_from_paraphrases() -> None:
    """Written before the rules for them; the held-out half was looked at only after they were finished."""
    parts = ["everyday_contradictions", "everyday_contradictions_held_out"]
    assert [pair for part in parts for pair in PAIRS[part] if conflict(*pair) is None] == []
    parts = ["everyday_paraphrases", "everyday_paraphrases_held_out"]
    assert {a for part in parts for a, b in PAIRS[part] if conflict(a, b)} == LOST_EVERYDAY


@given(st.text(max_size=200), st.text(max_size=200))
def test_any_two_texts_are_compared_without_an_error_and_no_text_conflicts_with_itself(a: str, b: str) -> None:
    conflict(a, b)
    assert conflict(a, a) is None


@pytest.mark.parametrize("text", ["1e999", "9" * 500, "1e400 5", "0/0", "1e-999"])
def test_numbers_beyond_all_measure_are_no_error(text: str) -> None:
    assert conflict(text, text) is None
    conflict(text, "5")
