"""The words that generated text is made of; those that answer questions are single tokens of the vocabulary."""

from __future__ import annotations


def words(text: str) -> tuple[str, ...]:
    """The words of a text, in order."""
    return tuple(text.split())


COLORS = words(
    "red blue green yellow orange purple violet brown black white gray pink silver gold copper bronze"
)
ANIMALS = words("cat dog horse cow sheep goat wolf fox bear lion tiger eagle hawk owl swan duck")
VALUES = (
    *COLORS,
    *ANIMALS,
    *words(
        """
apple pear plum cherry grape lemon melon peach olive onion carrot bean rice corn wheat honey spring summer
autumn winter monday friday river ocean mountain forest cloud rain snow wind fire stone
"""
    ),
)
PLACES = words("""
harbor lantern garden bridge tower castle market station library museum kitchen cellar island valley
village temple engine printer router cabinet drawer locker vault gate door window boat ship train wagon
office school theater factory bakery studio workshop warehouse lighthouse mill tunnel tent cabin hotel
clinic bank farm barn stable orchard meadow desert glacier canyon lagoon chapel palace fortress archive
camp tavern dock park shop
""")
SITES = words("""
harbor garden bridge tower castle market station library museum island valley village temple gate school theater
factory bakery lighthouse mill tunnel cabin hotel bank farm barn orchard meadow desert glacier canyon lagoon chapel
palace fortress camp tavern dock park shop
""")
ADJECTIVES = words("old new small large quiet hidden northern southern eastern western wooden narrow")
WOMEN = words(
    "Alice Carol Emma Grace Julia Laura Maria Nora Rosa Tina Anna Clara Eva Hanna Kate Mia Olga Ruth Vera Zoe"
)
MEN = words(
    "Bob David Frank Henry Ivan Karl Oscar Paul Simon Victor Ben Daniel Felix Jack Leo Noah Peter Sam Tom Walter"
)
NAMES = (*WOMEN, *MEN)
THINGS = words("ball book box coin cup hat key kite lamp letter map ring rope scarf shell spoon stone")
FOODS = words("bread soup cake cheese rice corn honey fruit")

# Each should be one token: an answer is then one step, and looking back is easily learned from lists of them.
SINGLE = (*VALUES, *PLACES, *ADJECTIVES, *NAMES, *THINGS, *FOODS)
