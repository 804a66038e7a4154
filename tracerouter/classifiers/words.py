"""Words that raise a risk: a few plain patterns by risk and kind, chosen so that everyday uses of them do not.

Looking for two hundred phrases costs half a millisecond a thousand characters, and most texts hold none. So each
risk names the words of which every one of its phrases has one, and only around those are the phrases looked for.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Final

PHRASES: Final[dict[str, dict[str, str]]] = {
    "legal": {
        "contract": r"(?:employment|rental|lease|service|purchase|loan|franchise|supply|licen[sc](?:e|ing)|sales|"
        r"partnership|settlement|shareholders?'?) (?:contract|agreement)s?|"
        r"breach of (?:the )?(?:contract|agreement|warranty)|"
        r"(?:sign|review|terminate|enforce|void|draft|cancel|amend)(?:d|ed|ing)? (?:the|this|our|my|a|your) "
        r"(?:contract|agreement|lease)|(?:contract|termination|penalty|arbitration|non-?compete) clauses?",
        "confidentiality": r"ndas?|non-?disclosure agreements?|confidentiality (?:clause|agreement|obligation)s?",
        "liability": r"limitation of liability|liab(?:le|ility) for|indemnif[a-z]+|indemnity|hold harmless|"
        r"liability (?:clause|claim|cap)s?",
        "dispute": r"lawsuits?|sued|suing|sue (?:my|our|the|them|him|her|us|for)|plaintiffs?|defendants?|subpoenas?|"
        r"cease[- ]and[- ]desist|small claims|legal action|court order|evict(?:ed|ion)|"
        r"wrongful(?:ly)? (?:terminat[a-z]+|dismiss[a-z]+)|unfair dismissal|"
        r"(?:copyright|trademark|patent) infring[a-z]+|child custody|statute of limitations",
        "advice": r"legal (?:advice|opinion|counsel|obligations?)|legally (?:binding|required|liable|allowed)|"
        r"power of attorney|(?:my|our|his|her|their) (?:lawyer|attorney|solicitor)",
    },
    "financial": {
        "investing": r"should (?:i|we) (?:buy|sell|invest)|invest (?:my|our|all)|"
        r"(?:buy|sell|short) (?:shares|stocks?|bonds|bitcoin|options)|"
        r"(?:my|our) (?:401\(?k\)?|pension|ira|portfolio|savings|retirement)|stock (?:tip|pick)s?|index funds?|"
        r"capital gains|dividends?",
        "lending": r"mortgages?|(?:personal|student|payday|car|home|business) loans?|refinanc[a-z]+|credit scores?|"
        r"debt consolidation|bankruptcy|foreclosure|in arrears|overdrafts?",
        "tax": r"tax (?:return|refund|deduction|liability|evasion|bracket|credit)s?|tax advice|"
        r"(?:income|inheritance|withholding|corporate|property) tax(?:es)?|"
        r"(?:file|filing|pay|paying|owe|owing) (?:my |our )?(?:back )?taxes|the irs",
        "payment": r"wire transfers?|direct debits?|(?:bank|checking|savings|brokerage) accounts?|"
        r"money launder[a-z]+|payslips?|chargebacks?",
    },
    "medical": {
        "dose": r"\d{1,5}(?:\.\d{1,3})? ?(?:mg|mcg|µg)|overdos[a-z]+|"
        r"(?:daily|maximum|missed|double|safe|recommended|higher|lower|next) dos(?:e|age)s?",
        "diagnosis": r"(?:was|been|got|newly|is|were) diagnosed|diagnosed with|(?:my|his|her) diagnosis|biopsy|"
        r"blood (?:test|pressure|sugar)|mri (?:scan|results?)|(?:my|his|her|their) (?:test|lab) results",
        "symptom": r"(?:my|his|her|their|these) symptoms|"
        r"symptoms of (?:a |an )?(?:stroke|heart|flu|diabetes|depression|covid)|chest pains?|shortness of breath|"
        r"sore throat|migraines?|vomiting|seizures?|miscarriage|panic attacks?|fever of \d\d|lump in (?:my|his|her)",
        "treatment": r"antibiotics?|antidepressants?|ibuprofen|paracetamol|acetaminophen|metformin|warfarin|insulin|"
        r"statins?|chemotherapy|prescribed|prescriptions?|(?:my|his|her|pain|heart) medication|"
        r"vaccin(?:e|es|ated|ation)|side effects of (?:taking|my|this drug|the drug)",
        "condition": r"diabet(?:es|ic)|hypertension|asthma|epilepsy|leuka?emia|tumou?rs?|"
        r"(?:breast|lung|skin|prostate|bowel) cancer|(?:i'm|i am|weeks) pregnant|bipolar disorder|schizophrenia",
        "self-harm": r"suicid(?:e|al)|self-harm|kill myself|end my life|hurt(?:ing)? myself",
    },
    "security": {
        "attack": r"(?:sql|command|prompt|code) injection|cross-site scripting|xss|cve-\d{4}-\d{4,7}|ransomware|"
        r"malware|phishing|keyloggers?|rootkits?|botnets?|ddos|reverse shell|privilege escalation|"
        r"brute[- ]?forc(?:e|ing) (?:the|a|my|attack|an|this|password)|"
        r"(?:bypass|bypassing|disable|disabling) (?:the |our |their )?"
        r"(?:login|authentication|firewall|mfa|2fa|antivirus)|zero-days?|exploit (?:code|kit|the (?:bug|flaw))",
        "incident": r"data breach(?:es)?|security (?:incident|breach|hole|vulnerability|vulnerabilities|advisory)|"
        r"(?:been|was|were|got) hacked|unauthori[sz]ed (?:access|login)|"
        r"compromised (?:account|server|credential|laptop)s?|leaked (?:password|credential|key)s?|"
        r"vulnerability (?:scan|report|assessment)s?|penetration test(?:s|ing)?",
        "credential": r"(?:password|passwd|pwd|secret[_ -]?key|api[_ -]?key|access[_ -]?(?:key|token))"
        r"(?:[\"']? ?[:=] ?| is )[\"']?[^\s\"']{0,40}[\d$!#%][^\s\"']{5,80}|"
        r"-----BEGIN (?:[A-Z]{2,10} )?PRIVATE KEY-----|ghp_[A-Za-z0-9]{30,40}|sk-[A-Za-z0-9_-]{20,80}|"
        r"bearer [A-Za-z0-9._-]{20,500}",
    },
}
"""Regular expressions by risk and kind, without regard to case; each stands for itself between other words."""

_KEYS: Final = {
    "legal": "contra agreem warran lease clause nda ndas disclo nondis confid liabil liable indemn harmle lawsui "
    "sued suing sue plaint defend subpoe desist claims action order evicte evicti termin dismis infrin "
    "custod limita advice opinio counse obliga bindin requir allowe attorn lawyer solici",
    "financial": "buy sell invest shares stock stocks bonds bitcoi option pensio ira portfo saving retire k funds fund "
    "gains divide mortga loan loans refina score scores consol bankru forecl arrear overdr tax taxes irs "
    "transf debit debits accoun launde paysli charge",
    "medical": "mg mcg µg overdo dose doses dosage diagno biopsy blood mri result sympto chest breath throat migrai "
    "vomiti seizur miscar attack fever lump antibi antide ibupro parace acetam metfor warfar insuli "
    "statin chemot prescr medica vaccin effect diabet hypert asthma epilep leukae leukem tumor tumors "
    "tumour cancer pregna bipola schizo suicid harm myself life",
    "security": "inject script xss cve ransom malwar phishi keylog rootki botnet ddos revers privil brute brutef "
    "bypass disabl zero exploi breach securi hacked unauth compro leaked vulner penetr passwo passwd pwd "
    "secret key apikey token access begin bearer ghp sk",
}
KEYS: Final = {risk: frozenset(words.split()) for risk, words in _KEYS.items()}
"""By risk: the first six letters of the words of which each of its phrases holds one."""

_WORD: Final = re.compile(r"[^\W\d_]+")
_PATTERNS: Final = {
    risk: re.compile(
        "|".join(rf"(?P<k{at}>(?<!\w)(?:{phrases})(?!\w))" for at, phrases in enumerate(kinds.values())), re.IGNORECASE
    )
    for risk, kinds in PHRASES.items()
}


def keys(text: str) -> set[str]:
    """Return the first six letters of each word in `text`."""
    return {word[:6] for word in _WORD.findall(text.lower())}


def risky_words(risk: str, text: str, known: set[str], until: int) -> Counter[str]:
    """Count the kinds of `risk` whose phrases begin in the first `until` characters of `text`; its keys are `known`."""
    found = Counter[str]()
    if risk not in KEYS or KEYS[risk].isdisjoint(known):
        return found
    names = tuple(PHRASES[risk])
    for match in _PATTERNS[risk].finditer(text):
        found[names[int(str(match.lastgroup)[1:])]] += match.start() < until
    return found
