"""Neutral words and invented labels that replacements are made of."""

from __future__ import annotations

import re

LOCALS: tuple[str, ...] = tuple(
    re.findall(
        "[a-z]+",
        "abram adela alder alina alton amara anders anika ansel ardis arlo astrid aubin avery barlow basil becca "
        "benno bettina birch blaine bram brenna briony caleb calder camden carver celia cedric clara clement coral "
        "corwin dalton daria darrow deacon delia denby dora dorian draper edda edison elara elden eliza elmer ember "
        "emlyn ennis esme fabian faye felton fern finley flora forrest freya garrick gemma gideon glenna greer "
        "greta hadley halden harlow hazel helga holden hollis ida imogen ingram iris ivor jarvis jessamy jolene "
        "jorah juno keane keaton kendra kerrin kirby lambert larkin leland lenora linden lorna lowell lyle mabel "
        "marden marlow maren mercer milton mirren morley nadia nella nesbit nolan norris odell olive orla orson "
        "osgood paige palmer parry pella perrin petra piper quill quincy radley ramona reeve rhoda rosalind rowan "
        "rufus sabin selma shelby sheldon sibyl sorrel sutton tabor talia tansy tatum tessa thora tilda tobin "
        "torrance ulla upton valen vance verity vesper wade walden warrick wendell whitby willa winslow wren "
        "yardley yorick zelda zora",
    )
)
"""Neutral words for the local part of an e-mail address."""
ENDINGS: tuple[str, ...] = (
    *("",) * 12,
    *re.findall("[a-z]+", "bourne by cliffe croft dale den field ford gate ham hurst land ley lock man mere more"),
    *re.findall("[a-z]+", "ridge shaw son stead stone ton ward well wick wood worth"),
)
"""What makes other names of these words; more than a third of them add nothing."""
DOMAINS: tuple[str, ...] = tuple(
    re.findall(
        "[a-z]+",
        "alderquay amberwick ashfennel barrowmint basaltine birchmoor bluntwater bramblegate brasswhistle "
        "brindlecote calderfen cedarnook chalkhollow cindermere clovermarsh copperlatch cragmellow crestwillow "
        "dapplemoor dewbarrow driftmallow duskfield eldernook emberquay fallowmint fenwhistle fernbarrow "
        "flintmeadow foxmallow frostlatch galewick gorsefield graniteloom greymallow harrowmint hazelquay "
        "heathermoss hollowpine inkwillow ironfennel ivorylatch juniperfen kestrelmoor kilnfield larchwater "
        "lintelgate loamwick lunarfennel maplequay marlstone meadowlatch mistbarrow mosswhistle nettlegate "
        "northfennel oakmellow ochremoor opalbarrow orchardfen otterwick pebblequay pinewhistle plumlatch "
        "quartzmeadow quillbarrow ravenfennel reedmallow rookwater rowanlatch rushmellow saffronmoor sedgewhistle "
        "slatemint sorrelquay sparrowfen stonemallow tallowgate tansymoor thistlequay tidemellow umberlatch "
        "vellumfield verdantquay wharfmint wickerfen willowslate wintermallow yarrowlatch",
    )
)
"""Invented first labels of a domain."""
SUFFIXES: tuple[str, ...] = ("com", "net", "org", "info", "biz", "us", "co.uk", "org.uk", "ca", "com.au", "de", "eu")
"""What stands after the first label of a domain."""
