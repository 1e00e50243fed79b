"""Texts on which tokenizers tend to differ: scripts, combining marks, control characters, special tokens inside of texts."""

import tokenizers

TEXTS = (
    "",
    " ",
    "\n\t \r\n",
    "a",
    "The quick brown fox, jumping; over -- the lazy dog?!",
    "don't can't I'LL 'tis o'clock rock'n'roll",
    "3.14 1,000,000 50% $5 #tag @user a_b a-b a/b C++ e.g. www.example.org/?q=1&r=2",
    "naïve façade Ångström Über straße œuvre łódź ﬁnance ½ №5 ①",
    "e\u0301 o\u0308\u0323 \u0301 a\u0300\u0301\u0302\u0303\u0304 \u0344 \u1ea5\u0323",
    "ΑΣ ΑΣΑ ὈΔΥΣΣΕΎΣ σς ΐ",
    "İstanbul ISPARTA ığdır DŽ Dž dž ẞ",
    "Привет, мир! ёлка Й и\u0306",
    "中文分词 測試。「引号」，全角：ＡＢＣ１２３　空格",
    "日本語のテキスト カタカナ ｶﾞ がか\u3099",
    "한국어 문장 \u1112\u1161\u11ab",
    "हिन्दी क्षत्रिय বাংলা தமிழ் ภาษาไทย ລາວ မြန်မာ ខ្មែរ",
    "العَرَبِيَّة لا ﷺ עִבְרִית فارسی\u200cها",
    "𠀀𪚥 𝒜𝔅ℂ 𐍈 \U0001f100 \U000e0041",
    "👍🏽 👩‍👩‍👧‍👦 🇩🇪🇫🇷 ❤️ ☕︎ 1️⃣",
    "a\x00b \x01 \x07c\x08 \x0b \x0c d\x1be \x7f \x80\x85\x9f",
    "a\u00a0b\u1680c\u2003d\u2028e\u2029f\u202fg\u205fh\u3000i",
    "a\u00adb\u200bc\u200dd\u2060e\ufefff \ufffd \uffff \ue000 \U000f0000 \U0010ffff",
    "\u200f\u202eabc\u202c \u061c",
    "‘single’ “double” «guillemets» – — … • · ¿ ¡ † ‰ € £ ¥",
    "^`~|<>=+*\\ $ ¢ ¬ ± × ÷ ∑ √ ∞ ≠ → ⇒",
    "w" * 99,
    "w" * 100,
    "w" * 101,
    "é" * 100 + " " + "e\u0301" * 60,
    "pneumonoultramicroscopicsilicovolcanoconiosis antidisestablishmentarianism",
    "....!!!!???? -- ---- ''' \"\"\" (((",
    "[ SEP ] [SEP [[SEP]] [sep] <s > ##ing ## #",
)
CODE_POINTS = [*range(0x80, 0xD800, 31), *range(0xE000, 0x32000, 31), *range(0xE0000, 0xE0200, 31)]
"""Code points of every block: tables of a later Unicode version show themselves."""


def probe_texts(tokenizer: tokenizers.Tokenizer) -> list[str]:
    """Return texts that are difficult for any tokenizer, and some with the special tokens of this one."""
    texts = [*TEXTS, *(f"Ab{chr(point)}C d{chr(point)}" for point in CODE_POINTS)]
    for token in sorted(added.content for added in tokenizer.get_added_tokens_decoder().values()):
        texts += [token, f"a{token}b", f"a {token} b", f"{token}{token} ", f"\n{token.lower()}. {token.upper()}"]
        texts += [token[:-1], f"{token[:1]} {token[1:]}", f"é{token}\u0301", f"\u00a0{token}\u3000中{token}文"]
    return texts
