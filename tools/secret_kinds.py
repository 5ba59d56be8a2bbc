"""What secrets look like: tokens by their issuer's prefix, and secrets by the place in which they stand.

Everything here is data for :mod:`tools.redaction`. Patterns are in RE2's syntax, so that no text can make them slow,
and meet bytes of UTF-8: a character beyond ASCII stands as a literal, never in a class. The group ``s`` is the secret
(or ``dq``, ``sq``, ``bare``: in double quotes, in single ones, in none), ``n`` its name; what is around it stays.
``hints`` are literals (in lower case) of which at least one stands in every text that the pattern can match.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Place:
    """A place where a secret stands, whatever its form; ``accepts`` tells (name, value) apart from harmless ones."""

    name: str
    hints: tuple[str, ...]
    pattern: str
    accepts: Callable[[str, str], bool] | None = None


#: Tokens that name their issuer: (a literal that each holds, pattern). Lengths are the shortest known, rounded down.
ISSUED: tuple[tuple[str, str], ...] = (
    ("hf_", r"hf_[A-Za-z0-9]{20,}"),  # Hugging Face, user
    ("api_org_", r"api_org_[A-Za-z0-9]{20,}"),  # Hugging Face, organisation
    ("ghp_", r"ghp_[A-Za-z0-9]{30,}"),  # GitHub
    ("gho_", r"gho_[A-Za-z0-9]{30,}"),
    ("ghu_", r"ghu_[A-Za-z0-9]{30,}"),
    ("ghs_", r"ghs_[A-Za-z0-9]{30,}"),
    ("ghr_", r"ghr_[A-Za-z0-9]{30,}"),
    ("github_pat_", r"github_pat_[A-Za-z0-9_]{30,}"),
    ("gl", r"gl(?:pat|rt|dt|ptt|cbt|ft|soat|agent|imt|ffct|oas)-[A-Za-z0-9_.-]{18,}"),  # GitLab
    ("xox", r"xox[abceoprs](?:\.xox[bp])?-[A-Za-z0-9-]{10,}"),  # Slack
    ("xapp-", r"xapp-\d-[A-Za-z0-9-]{20,}"),
    ("AKIA", r"AKIA[A-Z0-9]{16}"),  # AWS key id
    ("ASIA", r"ASIA[A-Z0-9]{16}"),
    ("ABIA", r"ABIA[A-Z0-9]{16}"),
    ("AIza", r"AIza[A-Za-z0-9_-]{30,}"),  # Google
    ("ya29.", r"ya29\.[A-Za-z0-9_-]{20,}"),
    ("GOCSPX-", r"GOCSPX-[A-Za-z0-9_-]{20,}"),
    ("npm_", r"npm_[A-Za-z0-9]{30,}"),
    ("pypi-", r"pypi-A[A-Za-z0-9_-]{40,}"),
    ("rubygems_", r"rubygems_[a-f0-9]{40,}"),
    ("_v1_", r"do[opr]_v1_[a-f0-9]{40,}"),  # DigitalOcean
    ("_v1_", r"wandb_v1_[A-Za-z0-9_]{20,}"),  # Weights & Biases
    ("_v1_", r"tgp_v1_[A-Za-z0-9_-]{30,}"),  # Together
    ("eyJ", r"eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?"),  # JSON Web Token
    ("sk_", r"sk_(?:live|test)_[A-Za-z0-9]{16,}"),  # Stripe
    ("rk_", r"rk_(?:live|test)_[A-Za-z0-9]{16,}"),
    ("whsec_", r"whsec_[A-Za-z0-9+/=]{20,}"),
    ("SG.", r"SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}"),  # SendGrid
    ("SK", r"SK[0-9a-f]{32}"),  # Twilio
    ("key-", r"key-[0-9a-f]{32}"),  # Mailgun
    (":AA", r"(?:bot)?\d{8,10}:AA[A-Za-z0-9_-]{30,}"),  # Telegram
    ("dapi", r"dapi[0-9a-f]{32}(?:-\d)?"),  # Databricks
    ("hv", r"hv[bsr]\.[A-Za-z0-9_-]{20,}"),  # HashiCorp Vault
    (".atlasv1.", r"[A-Za-z0-9]{10,}\.atlasv1\.[A-Za-z0-9_=-]{40,}"),  # Terraform
    ("NRAK-", r"NRAK-[A-Z0-9]{20,}"),  # New Relic
    ("glsa_", r"glsa_[A-Za-z0-9]{20,}(?:_[0-9a-f]{8})?"),  # Grafana
    ("glc_", r"glc_[A-Za-z0-9+/=]{30,}"),
    ("dckr_", r"dckr_[op]at_[A-Za-z0-9_-]{20,}"),  # Docker Hub
    ("r8_", r"r8_[A-Za-z0-9]{30,}"),  # Replicate
    ("gsk_", r"gsk_[A-Za-z0-9]{30,}"),  # Groq
    ("nvapi-", r"nvapi-[A-Za-z0-9_-]{30,}"),  # NVIDIA
    ("pplx-", r"pplx-[A-Za-z0-9]{40,}"),  # Perplexity; pplx-kernels is a library
    ("xai-", r"xai-[A-Za-z0-9]{40,}"),
    ("fw_", r"fw_[A-Za-z0-9]{20,}"),  # Fireworks
    ("rpa_", r"rpa_[A-Z0-9a-z]{30,}"),  # RunPod
    ("ms-", r"ms-[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"),  # ModelScope
    ("LTAI", r"LTAI[A-Za-z0-9]{12,24}"),  # Alibaba Cloud
    ("AKID", r"AKID[A-Za-z0-9]{32,}"),  # Tencent Cloud
    ("AKLT", r"AKLT[A-Za-z0-9_-]{30,}"),  # Volcano Engine
    ("bce-v3/", r"bce-v3/ALTAK-[A-Za-z0-9]{16,}/[a-f0-9]{32,}"),  # Baidu
    ("lin_api_", r"lin_api_[A-Za-z0-9]{30,}"),
    ("ntn_", r"ntn_[A-Za-z0-9]{40,}"),  # Notion
    ("ATATT3x", r"ATATT3x[A-Za-z0-9_=-]{30,}"),  # Atlassian
    ("figd_", r"figd_[A-Za-z0-9_-]{30,}"),
    ("PMAK-", r"PMAK-[0-9a-f]{20,}-[0-9a-f]{30,}"),  # Postman
    ("dp.", r"dp\.(?:pt|st|ct|sa)\.[A-Za-z0-9_.-]{30,}"),  # Doppler
    ("pul-", r"pul-[0-9a-f]{40}"),  # Pulumi
    ("sbp_", r"sbp_[0-9a-f]{40}"),  # Supabase
    ("pscale_", r"pscale_(?:tkn|pw|oauth)_[A-Za-z0-9_.-]{20,}"),
    ("nfp_", r"nfp_[A-Za-z0-9]{30,}"),  # Netlify
    ("sntry", r"sntry[su]_[A-Za-z0-9_+/=.-]{30,}"),  # Sentry
    ("tskey-", r"tskey-[a-z]+-[A-Za-z0-9]+-[A-Za-z0-9]{16,}"),  # Tailscale
    ("sha256~", r"sha256~[A-Za-z0-9_-]{30,}"),  # OpenShift
    ("AGE-SECRET-KEY-1", r"AGE-SECRET-KEY-1[A-Z0-9]{40,}"),
    ("shp", r"shp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}"),  # Shopify
    ("HRKU-", r"HRKU-[A-Za-z0-9_-]{30,}"),  # Heroku
    ("lsv2_", r"lsv2_(?:pt|sk)_[a-f0-9]{32}_[a-f0-9]{8,}"),  # LangSmith
    ("pk-lf-", r"pk-lf-[0-9a-f-]{30,}"),  # Langfuse
)

#: "sk-" starts the keys of OpenAI, Anthropic, DeepSeek, OpenRouter, LiteLLM and many gateways, and also plain words.
SK_KEY = r"sk-[A-Za-z0-9_-]{16,}"

_VALUE = r"""(?:b?"(?P<dq>[^"\n]*)"|b?'(?P<sq>[^'\n]*)'|(?P<bare>[^\s"',;&|)\]}<>]+))"""
_QUOTE = r"""\\?["']?"""
_OPEN = r"""(?:b?\\?["'])?"""  # also of a bytes literal
_NAME_END = (
    r"(?:api[_-]?keys?|apikey|access[_-]?key(?:[_-]?id)?|secret[_-]?(?:access[_-]?)?key|private[_-]?key|signing[_-]?key"
    r"|encryption[_-]?key|master[_-]?key|account[_-]?key|shared[_-]?access[_-]?key|auth[_-]?key|license[_-]?key"
    r"|client[_-]?secret|secret|token|passw(?:or)?d|passphrase|pwd|pass|credentials?|auth)"
)
_ENVIRONMENT_END = r"(?:TOKEN|KEY|SECRET|PASSWORD|PASSWD|PASSPHRASE|PASS|PWD|CREDENTIALS?|APIKEY|AUTH)"
_HEADERS = (
    r"(?:proxy-)?authorization|x-api-key|api-key|apikey|x-auth-token|x-access-token|x-vault-token|x-amz-security-token"
    r"|private-token|x-gitlab-token|x-goog-api-key|ocp-apim-subscription-key|x-slack-signature|x-csrf-token"
)

#: Words that follow a name in a sentence ("the token is", "password: required") and are nobody's secret.
SENTENCE_WORDS = frozenset(
    (
        "a an and are as at auth bearer but by can cannot do does empty env error expected expired fail "
        "failed false field for from get has have here how i if in input invalid is it length like limit "
        "login mismatch missing must need needed no none not nothing null of off on only optional or out over "
        "required set should so some string that the then there this to true type unauthorized undefined "
        "unknown unset use used using value was we when which will with without wrong you your auto default "
        "disabled enabled basic digest negotiate"
    ).split()
)
#: "bos_token" and its kin name tokens of a vocabulary.
VOCABULARY_NAMES = (
    "bos eos pad unk sep cls mask stop start end image video audio special placeholder think next first last draft"
    " bonus unexpected expected invalid per each every new sampled special the a fill eot eom vision begin mm"
).split()

#: $NAME, ${NAME...}, $(command...), {{ name }}, %NAME%, %s, <what to put here>; the outer brackets may be gone already.
_STANDS_FOR = re.compile(r"\$\w+|\$[{(].*|%\w+%|%[sr]|<.*>")


def has_digit_and_letter(value: str) -> bool:
    """Whether a value mixes digits and letters, as generated secrets do and words do not."""
    return any(c.isdigit() for c in value) and any(c.isalpha() for c in value)


def is_placeholder(value: str) -> bool:
    """Whether a value only stands for a secret: a variable, a mask, a word of a sentence, a constant."""
    stripped = value.strip().strip("\"'[](){},.;`")
    return (
        stripped.lower() in SENTENCE_WORDS
        or not stripped.strip("*xX.•…-_?")
        or _STANDS_FOR.fullmatch(stripped) is not None
        or stripped.startswith(("os.environ", "os.getenv", "process.env", "secretKeyRef", "valueFrom", "SecretStr("))
    )


def named_secret(name: str, value: str) -> bool:
    """Whether ``name = value`` gives a secret away.

    A name with "token" is often about tokens of a vocabulary, and "auth" about a method, so these two ask for a value
    that looks generated; a password may be any word.
    """
    if is_placeholder(value):
        return False
    lowered = name.lower().replace("-", "_")
    if lowered.endswith("token"):
        owner = lowered.removesuffix("token").rstrip("_").rsplit("_", 1)[-1]
        if owner in VOCABULARY_NAMES:
            return False
        return len(value) >= 8 and (has_digit_and_letter(value) or len(value) >= 20) and "/" not in value[:1]
    if lowered.endswith(("auth", "pass", "credential", "credentials")):
        return len(value) >= 8 and has_digit_and_letter(value) and value[0] not in "/.~"
    if value[0] in "/~" and lowered.endswith("key"):  # a file with a key in it
        return False
    return not value.replace(".", "").isdigit() or "pass" in lowered or "pwd" in lowered or len(value) >= 16


def environment_secret(name: str, value: str) -> bool:
    """The same for a variable; "_KEY" alone says little, so its value must look generated."""
    if is_placeholder(value) or value in {"0", "1"}:
        return False
    if name.endswith("_KEY") and not name.endswith(("API_KEY", "SECRET_KEY", "ACCESS_KEY", "PRIVATE_KEY")):
        return len(value) >= 8 and has_digit_and_letter(value) and value[0] not in "/~"
    if name.endswith(("_PASS", "AUTH", "CREDENTIALS", "CREDENTIAL")):
        return len(value) >= 4 and value[0] not in "/~" and not value.isdigit()
    return value[0] not in "/~" and (not value.isdigit() or len(value) >= 12 or "PASS" in name or "PWD" in name)


def _is_value(_: str, value: str) -> bool:
    return not is_placeholder(value)


PLACES: tuple[Place, ...] = (
    Place(
        "private key",
        ("private key",),
        r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----(?P<s>[^-]+)"
        r"(?:-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----)?",
    ),
    Place("URL password", ("://",), r"[A-Za-z][A-Za-z0-9+.-]*://[^\s/@:\"'<>]*:(?P<s>[^\s/\"'<>]+)@", _is_value),
    Place(
        "URL user that is a token",
        ("://",),
        r"[A-Za-z][A-Za-z0-9+.-]*://(?P<s>[A-Za-z0-9_=-]{20,})(?::x-oauth-basic)?@",
    ),
    Place(
        "URL parameter",
        ("token=", "key=", "sig=", "signature=", "secret=", "password=", "passwd=", "credential=", "code=", "auth="),
        r"(?i)[?&;](?:[a-z_-]*token|(?:api|access|auth|subscription)[_-]?key|key|sig|(?:x-(?:amz|goog)-)?signature"
        r"|x-(?:amz|goog)-credential|x-amz-security-token|client[_-]?secret|secret|passw(?:or)?d|auth|code)="
        r"(?P<s>[^&\s\"'<>#]{6,})",
        lambda _, value: not is_placeholder(value) and (len(value) >= 16 or has_digit_and_letter(value)),
    ),
    Place(
        "Slack webhook",
        ("hooks.slack.com",),
        r"hooks\.slack\.com/(?:services|workflows|triggers)/(?P<s>[A-Za-z0-9/_-]+)",
    ),
    Place("Discord webhook", ("/api/webhooks/",), r"discord(?:app)?\.com/api/webhooks/(?P<s>\d+/[A-Za-z0-9_-]+)"),
    Place("Teams webhook", ("webhook",), r"webhook\.office\.com/(?P<s>webhook[A-Za-z0-9/@_-]+)"),
    Place("Feishu or DingTalk webhook", ("/bot/v2/hook/",), r"/bot/v2/hook/(?P<s>[A-Za-z0-9-]{16,})"),
    Place(
        "header",
        ("authorization", "key", "token", "signature"),
        rf"(?i)\b(?P<n>{_HEADERS})\b{_QUOTE}\s*[:=,]\s*{_OPEN}(?:(?:bearer|basic|digest|token|negotiate|apikey|aws4-hmac-sha256)\s+)?"
        r"(?P<s>[^\s\"',;\\)\]}<>]{4,}(?:,\s*(?:signature|signedheaders)=[^\s\"',]+)*)",
        _is_value,
    ),
    Place(
        "cookie",
        ("cookie",),
        r"(?i)\b(?:set-)?cookie\b\\?[\"']?\s*[:,]\s*(?:b?\\?[\"'])?(?P<s>[^\s\"'=;]+=[^\r\n\"']+)",
    ),
    Place(
        "bearer",
        ("bearer ", "basic "),
        r"(?i)\b(?:bearer|basic)\s+(?P<s>[A-Za-z0-9._~+/=-]{8,})",
        lambda _, value: has_digit_and_letter(value) or len(value) >= 24,
    ),
    Place(
        "command-line argument",
        ("--",),
        rf"(?i)--?(?P<n>(?:[a-z0-9]+[_-])*{_NAME_END}){_QUOTE}(?:\s*,\s*|\s*=\s*|[ \t]+(?:\\\r?\n\s*)?){_VALUE}",
        lambda _, value: not is_placeholder(value) and value[0] not in "-/",
    ),
    Place("login", ("login", "curl", "wget", "sshpass"), r"(?i)\bdocker login\b[^\n|]*\s-p[ =]?(?P<s>[^\s-]\S*)"),
    Place("login", ("sshpass",), r"\bsshpass\s+-p\s*(?P<s>\S+)"),
    Place("login", ("curl", "wget"), r"\b(?:curl|wget)\b[^\n|]*\s(?:-u|--user)[ =]?[\"']?[^\s:\"']+:(?P<s>[^\s\"']+)"),
    Place("login", ("wandb",), r"(?i)\bwandb(?:\.login\(key=[\"']|\s+login\s+(?:--\w+\s+)*)(?P<s>[0-9a-f]{40,})"),
    Place("netrc", ("password",), r"(?i)\blogin\s+\S+\s+password\s+(?P<s>\S+)"),
    Place(
        "Kaggle",
        ("username",),
        r"[\"']username[\"']\s*:\s*[\"'][^\"']+[\"']\s*,\s*[\"']key[\"']\s*:\s*[\"'](?P<s>[0-9a-f]{32})",
    ),
    Place(
        "Azure connection string",
        ("accountkey=", "sharedaccesskey=", "sharedaccesssignature="),
        r"(?i)\b(?:AccountKey|SharedAccessKey|SharedAccessSignature)=(?P<s>[A-Za-z0-9+/=%&_-]{16,})",
    ),
    Place(
        "environment",
        ("token", "key", "secret", "pass", "pwd", "credential", "auth"),
        rf"\b(?P<n>[A-Z][A-Z0-9_]*{_ENVIRONMENT_END})(?:{_QUOTE}\]?\s*(?:=|:)|[\"\']\s*,)\s*{_VALUE}",
        environment_secret,
    ),
    Place(
        "environment of a pod",
        ("value",),
        rf"\bname{_QUOTE}:\s*{_QUOTE}(?P<n>[A-Z][A-Z0-9_]*{_ENVIRONMENT_END}){_QUOTE},?\s*{_QUOTE}value{_QUOTE}:\s*{_VALUE}",
        environment_secret,
    ),
    Place(
        "list of keys",
        ("key", "token"),
        rf"(?i)\b(?P<n>(?:[a-z0-9]+[_-])*{_NAME_END}){_QUOTE}\s*[=:]\s*\[(?P<s>[^\]\n]+)",
        lambda name, value: "token" not in name.lower() and not is_placeholder(value),
    ),
    Place(
        "named value",
        ("token", "key", "secret", "pass", "pwd", "credential", "auth"),
        rf"(?i)(?:^|[^A-Za-z0-9_-])(?P<n>(?:[a-z0-9]+[_.-])*{_NAME_END}){_QUOTE}\]?\s*(?:=>|=|:)\s*{_VALUE}",
        named_secret,
    ),
    Place(
        "named in Chinese",
        ("密码", "口令", "密钥", "令牌"),
        r"(?:密码|口令|密钥|令牌)\s*(?:是|为|:|：|=)\s*(?::|：|=)?\s*(?:\"|'|“|「)?(?P<s>[!-~]{4,})",
        _is_value,
    ),
)

EMAIL = r"\b[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}\b"
