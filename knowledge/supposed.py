"""Tells what a person saw from what the person supposes: "it dies with exit code 137. Bad power supply?"

A guess in a description names the very words by which another cause is recognised. It is left out of what is compared,
as long as enough of the description remains; a question whether something is normal is no guess, it is the matter.
"""

from __future__ import annotations

import re

#: A sentence, or in Chinese a clause, with the mark that ends it.
_PIECE = re.compile(r"[^.?!。;]+(?:[.?!。;]+(?=\s|$|[\u3400-\u9fff])|[.?!。;](?=\S)|$)")
_CLAUSE = re.compile(r"[^,。?!;]+[,。?!;]*")
_CJK = re.compile(r"[\u3400-\u9fff]")
_ENGLISH = re.compile(
    r"^\W*(?:(?:so|and|but|or|then|we|i) )*(?:"
    r"(?:i|we) (?:first |also |initially |already )?(?:guess|suspect|assum|suppos|though?t|think|believ|blam)\w*\b"
    r"|(?:surely|maybe|perhaps|probably|could it|could be|might it|is it (?:my|the|a|because)|must be)\b"
    r"|(?:somebody|someone|a friend|(?:my |a )?colleagues?|they|(?:the |our )?\w+ (?:team|guys|people|folks)) "
    r"(?:\w+ )?(?:told|says?|said|think|thinks|swears?|suspects?|claims?|is (?:convinced|being blamed)|was blamed|blames?)\b)"
    r"|(?:,? (?:i guess|i suppose|i assume|perhaps|maybe))\?*\W*$"
    r"|^\W*(?:\w+[ '-]+){0,5}\w+ (?:broken|damaged|corrupt|defective|poisoned|incomplete|faulty|flaky|bad)\?\W*$"
    r"|^\W*(?:bad|broken|faulty|defective|corrupt|damaged) (?:\w+ ?){1,3}\?\W*$"
)
_CHINESE = re.compile(
    r"^(?:我|我们|我还|我也|还|同事|客户|有人|领导|运维|一开始|起初|之前|本来)*"
    r"(?:怀疑|以为|猜是|猜测|觉得是|估计是|可能是|应该是|难道|会不会是|是不是.{0,14}(?:坏|错|问题|bug|不够|过期|不对|故障|没加载|降频)"
    r"|认为)"
    r"|^(?:同事|领导|客户|运维|厂商)(?:们)?(?:都)?说(?:是|可能)"
    r"|^是.{1,8}(?:坏|错|有问题|bug|太小|不够)(?:了)?[吗么]"
)
#: Whether something is in order, and whether one may ignore it, is what such a person wants to know.
_ASKS = re.compile(r"ignore|normal|expected|worry|harmless|works? fine|正常|忽略|不管|要紧|影响")
#: A longer guess carries what the person saw as well: words, Chinese characters.
_MOST_WORDS, _MOST_CHARACTERS = 10, 16
#: What must remain: fewer words (or Chinese characters) describe nothing.
_LEAST_WORDS, _LEAST_CHARACTERS = 8, 12


def seen(normalised: str) -> str:
    """A normalised description without its guesses, or all of it where too little would remain."""
    pieces = _PIECE.findall(normalised)
    if _CJK.search(normalised):
        pieces = [clause for piece in pieces for clause in _CLAUSE.findall(piece)]
    kept = [piece for piece in pieces if not _is_guess(piece.strip())]
    if len(kept) == len(pieces):
        return normalised
    rest = "".join(kept).strip()
    enough = len(rest.split()) >= _LEAST_WORDS or len(_CJK.findall(rest)) >= _LEAST_CHARACTERS
    return rest if enough else normalised


def _is_guess(piece: str) -> bool:
    characters = len(_CJK.findall(piece))
    if len(piece.split()) > _MOST_WORDS or characters > _MOST_CHARACTERS:
        return False
    rule = _CHINESE if characters else _ENGLISH
    return rule.search(piece) is not None and _ASKS.search(piece) is None
