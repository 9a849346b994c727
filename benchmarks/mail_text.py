"""The words of `mailbox`: templates and pools for business mail, newsletters and general text.

``{slot}`` in a template is filled from `POOLS`, or with a number for ``{n}``, ``{ref}`` (four digits), ``{amount}`` and
``{time}``. In templates of a mention, ``{name}``, ``{first}`` and ``{company}`` are the person's and ``{value}`` is the
personal value; the name always stands before the value, so that a model can learn the one from the other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence


@dataclasses.dataclass(frozen=True, slots=True)
class Topic:
    """What a mail is about: templates for its subject line and its sentences."""

    subjects: tuple[str, ...]
    sentences: tuple[str, ...]


TOPICS: Sequence[Topic] = (
    Topic(
        ("Invoice {ref}", "Payment for the {item}", "Open balance, {month}"),
        (
            "Invoice {ref} for {amount} is due on {day}, {month} {n}.",
            "We were billed twice for the {item} that went to {city}.",
            "Could {team} clear the {amount} before the books close in {month}?",
            "The credit note over {amount} for the {adjective} {item} is still missing.",
            "Please match order {ref} against the delivery slip from {city}.",
            "I have asked {team} to hold the payment until {day}.",
            "The rate we agreed in {month} was {n} percent below the list price.",
        ),
    ),
    Topic(
        ("Shipment to {city}", "Delivery {ref}", "Truck for {day}"),
        (
            "The truck with {n} pallets of {item} leaves {city} on {day} at {time}.",
            "Customs in {city} wants the packing list for load {ref} again.",
            "{n} crates of the {adjective} {item} arrived damaged in {city}.",
            "The carrier can take the rest on {day} if {team} signs today.",
            "We have room for {n} more boxes on the {time} run to {city}.",
            "Please keep the {item} dry, the last load was soaked on the way from {city}.",
            "Driver and plate for load {ref} follow by {time}.",
        ),
    ),
    Topic(
        ("{day} meeting", "Agenda for {month}", "Call about the {item}"),
        (
            "Can we move the {day} call to {time}?",
            "I would like {n} minutes on the {item} before {team} joins.",
            "The large room in {city} is taken, so we meet in the {adjective} one upstairs.",
            "Bring the figures for {month} and the plan for the {item}.",
            "Last time we ran {n} minutes over because of the {city} question.",
            "Notes from {day} are in the folder that {team} keeps.",
            "If {time} is too early, {day} afternoon works as well.",
        ),
    ),
    Topic(
        ("Draft contract {ref}", "Terms for {city}", "Comments on the agreement"),
        (
            "Clause {n} of draft {ref} still names the old office in {city}.",
            "The {adjective} version has a notice period of {n} weeks.",
            "Legal wants the price of {amount} written out in words.",
            "Our side can sign on {day} if {team} accepts the change to page {n}.",
            "They struck the penalty for late {item} and kept everything else.",
            "I marked {n} open points, most of them about the {item} in {city}.",
            "The option runs until {month} {n} and then falls away.",
        ),
    ),
    Topic(
        ("Trip to {city}", "Travel on {day}", "Hotel in {city}"),
        (
            "I land in {city} on {day} at {time} and take the train from there.",
            "The hotel near the {city} office has {n} rooms left.",
            "Per diem for {city} is {amount}, receipts go to {team}.",
            "Could somebody pick up the {item} on the way to {city}?",
            "My return is on {month} {n}, so I will miss the {time} call.",
            "The {adjective} route through {city} saves about {n} minutes.",
            "{team} booked seat {n} again, which nobody likes.",
        ),
    ),
    Topic(
        ("Open position in {city}", "Interview on {day}", "New colleague"),
        (
            "We had {n} applications for the post in {city}, three of them good.",
            "The candidate for {team} can start in {month}.",
            "Please read the {adjective} one first, she ran the {item} desk for {n} years.",
            "The interview is on {day} at {time} in {city}.",
            "Her notice period ends on {month} {n}.",
            "I would rather wait until {month} than hire the wrong person for {team}.",
            "The desk by the {adjective} window is free for the newcomer.",
        ),
    ),
    Topic(
        ("Server in {city}", "Ticket {ref}", "Password reset"),
        (
            "Ticket {ref} was closed on {day} but the {item} list still does not load.",
            "The {city} server will be down from {time} for about {n} minutes.",
            "{team} lost access to the {adjective} folder after the update in {month}.",
            "Please restart once and tell me whether screen {n} comes up.",
            "The backup from {month} {n} is complete.",
            "We moved {n} accounts to the {adjective} machine over the weekend.",
            "The printer near {team} takes paper from tray {n} only.",
        ),
    ),
    Topic(
        ("Budget for {month}", "Forecast {month}", "Numbers from {city}"),
        (
            "The {month} forecast is {amount} short, nearly all of it in {city}.",
            "{team} spent {n} percent more on {item} than planned.",
            "If we drop the {adjective} project the gap shrinks to {amount}.",
            "Column {n} of the sheet adds up the {item} twice.",
            "The board sees the numbers on {day}, so I need yours by {time}.",
            "{city} asks for another {amount} and gives no reason.",
            "Let us keep {n} percent back until {month}.",
        ),
    ),
    Topic(
        ("Samples of the {item}", "Quality report {ref}", "Complaint from {city}"),
        (
            "The {adjective} sample failed the test at {n} degrees.",
            "The customer in {city} sent {n} pieces back on {day}.",
            "Batch {ref} is fine, the {item} from {month} are not.",
            "{team} will repeat the measurement on {day} at {time}.",
            "Report {ref} has the pictures of the {adjective} seam.",
            "We owe {city} an answer by {month} {n}.",
            "I suggest we replace the {item} and write off {amount}.",
        ),
    ),
    Topic(
        ("Training in {month}", "Course for {team}", "Seats on {day}"),
        (
            "The course on {item} safety is on {day} from {time} in {city}.",
            "There are {n} seats left and {team} wants half of them.",
            "The {adjective} handbook, page {n}, is enough for the first day.",
            "Whoever missed the session in {month} can come to {city} instead.",
            "Lunch costs {amount} for everybody, {team} pays.",
            "The trainer needs a list of names by {day}, {time}.",
            "Last year {n} of us failed the {adjective} part.",
        ),
    ),
)

GREETINGS = ("Hi {first},", "Hello {first},", "{first},", "Dear {first},", "Good morning {first},")
CLOSINGS = ("Thanks,", "Regards,", "Best,", "Kind regards,", "Many thanks,", "Best wishes,")

SIGNED: Mapping[str, tuple[str, ...]] = {
    "email": ("E-mail: {value}", "{value}", "Mail: {value}"),
    "phone": ("Phone: {value}", "Tel. {value}", "{value}", "Direct: {value}"),
    "account": ("Account: {value}", "Account no. {value}", "Acct. {value}"),
}
TOLD: Mapping[str, tuple[str, ...]] = {
    "email": (
        "Please copy {name} at {value} on the reply.",
        "{name} reads mail at {value} only.",
        "Send the file for {team} to {name}, {value}, by {day}.",
        "The list still lacks {name} ({value}).",
        "For the {item} write to {name}: {value}.",
        "I forwarded it to {name} <{value}> on {day}.",
    ),
    "phone": (
        "You can reach {name} at {value} until {time}.",
        "{name} asked to be called on {value}.",
        "Please phone {name}, {value}, about the {item}.",
        "The number of {name} is {value}.",
        "If anything breaks, ring {name} on {value}.",
        "For {city} call {name}: {value}.",
    ),
    "account": (
        "Please wire it to the account of {name}: {value}.",
        "The refund goes to {name}, account {value}.",
        "We credited {name} (account {value}) on {day}.",
        "Book the {amount} for {name} on {value}.",
        "{name} has the account number {value}.",
        "The statement of {name}, {value}, is wrong.",
    ),
}
CODED = (
    "The access code for the {item} in {city} is {value}",
    "Use the door code of {team}, which is {value}",
    "Your reference for {day} is {value}",
    "Please quote the reference {value}",
    "The ticket for {city} has the code {value}",
)

HEADLINES = ("{company} Weekly", "{company} Bulletin", "Notes from {company}", "{company} Market Letter")
NEWS = (
    "Prices for {item} in {city} rose {n} percent in {month} after a {adjective} spring.",
    "Our {city} branch opens a {adjective} hall for {item} on {day}, {month} {n}.",
    "{team} won the {month} safety prize with {n} days free of accidents.",
    "Readers in {city} ask about {item}: we answer on page {n}.",
    "The {adjective} road between {city} and {city} is closed until {month} {n}.",
    "From {month} on the canteen in {city} serves lunch from {time} for {amount}.",
    "A survey of {n} buyers puts {item} ahead of {item} for the year.",
    "Exports of {item} through {city} fell to {amount} a ton in {month}.",
    "{team} collected {amount} for the {adjective} school in {city}.",
    "The {city} fair on {day}, {month} {n}, has {n} stands for {item}.",
    "Members of {team} may order {adjective} {item} at {amount} until {month}.",
    "Stocks of {item} last {n} weeks, says {team} in {city}.",
    "Storms delayed {n} ships off {city}, and {adjective} {item} with them.",
    "Our column looks back at {month}, when {item} from {city} cost {amount}.",
)
CONTACTS: Mapping[str, tuple[str, ...]] = {
    "email": ("Questions go to {name}, {value}.", "Letters to {name} at {value}."),
    "phone": ("Questions? Ask {name}, {value}.", "To subscribe call {name} at {value}."),
    "account": ("Donations go to {name}, account {value}.",),
}

GENERAL = (
    "The {bird} builds its nest in {tree} trees and feeds on {food} for most of the {season}.",
    "Rivers that rise in the {land} run {colour} after heavy rain and clear within {n} days.",
    "Cut the {food} into thin slices and let them rest in salt for {n} minutes.",
    "Simmer the {food} with {herb} over a low flame until the {colour} skin splits.",
    "A {tree} tree may live for {n} decades where the soil of the {land} is deep.",
    "In {season} the {bird} leaves the {land} and follows the coast to the south.",
    "Stir the {herb} into warm butter, then fold in the {food} with a wooden spoon.",
    "The {colour} stone of the {land} was once the floor of a shallow sea.",
    "Young {bird} chicks stay near the {land} until their feathers turn {colour}.",
    "Bread with {herb} and {food} keeps for {n} days in a cool cellar.",
    "The bark of the {tree} was used to dye wool {colour} in former times.",
    "Fog lies over the {land} on most mornings in {season} and lifts before noon.",
    "Peel the {food}, rub it with {herb} and roast it until the edges are {colour}.",
    "Seeds of the {tree} are carried by the {bird} to the edges of the {land}.",
    "Glaciers shaped the {land} and left {colour} lakes between the hills.",
    "A soup of {food} and {herb} is eaten in {season} when nights grow cold.",
    "The {bird} sings before dawn, and a second one answers from the {tree} trees.",
    "Leave the dough for {n} hours, then press the {food} into it with wet hands.",
    "On the {land} the {tree} grows no taller than a child because of the wind.",
    "The {colour} lichen on old {tree} bark grows by a hair in a whole {season}.",
)

MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.replace("_", " ") for word in text.split())


POOLS: Mapping[str, Sequence[str]] = {
    "month": MONTHS,
    "day": DAYS[:5],
    "city": _words(
        "Alderport Brackwater Calden Dunmoor Eastvale Farrowby Glenholt Harmouth Isleworth_Bay Juniper_Falls Kestrelton"
        " Larkhaven Midbrook Northam_Quay Oakridge Pellworth Quarry_Hill Redmere Stonefield Thornbury_Cross Upper_Vale"
        " Westerlea Yarrowgate Ashcombe"
    ),
    "item": _words(
        "pumps valves steel_pipes copper_wire paper_rolls seed_corn floor_tiles roof_panels gearboxes cables"
        " tractor_parts cotton_bales glass_jars batteries bearings paint fuel_filters office_chairs scanners timber"
        " cement fertilizer engine_oil work_boots"
    ),
    "team": _words(
        "Accounting Purchasing Logistics the_warehouse the_night_shift Planning Sales the_lab Maintenance"
        " the_front_desk Legal Marketing the_export_desk Payroll the_field_office Engineering"
    ),
    "adjective": _words(
        "small new second blue narrow final early cheap heavy revised former green spare quiet long northern third"
        " provisional coarse upper"
    ),
    "title": _words(
        "Accounts_Payable Buyer Logistics_Lead Sales_Manager Site_Engineer Office_Manager Controller Analyst"
        " Export_Clerk Account_Manager Plant_Supervisor Legal_Assistant Payroll_Clerk Dispatcher Auditor Planner"
    ),
    "bird": _words("heron wren swift plover bunting crane thrush lapwing kingfisher warbler"),
    "tree": _words("birch alder larch willow rowan hornbeam linden juniper poplar elm"),
    "land": _words("moor delta plateau marsh heath valley steppe ridge upland fen"),
    "season": _words("spring summer autumn winter"),
    "colour": _words("amber grey russet pale_green dark_brown silver ochre violet"),
    "food": _words("turnips lentils mushrooms barley onions chestnuts plums beans pumpkin fennel leeks mackerel"),
    "herb": _words("thyme dill sage parsley marjoram bay_leaves mint lovage"),
}

FIRST_NAMES = _words(
    "James Mary Robert Patricia John Jennifer Michael Linda David Elizabeth William Barbara Richard Susan Joseph"
    " Jessica Thomas Sarah Charles Karen Daniel Nancy Matthew Lisa Anthony Betty Mark Sandra Donald Ashley Steven"
    " Emily Andrew Donna Paul Michelle Joshua Carol Kenneth Amanda Kevin Melissa Brian Deborah George Stephanie"
    " Timothy Rebecca Ronald Laura Jason Sharon Edward Cynthia Jeffrey Dorothy Ryan Amy Jacob Kathleen Gary Angela"
    " Nicholas Shirley Eric Emma Jonathan Brenda Stephen Pamela Larry Nicole Justin Anna Scott Samantha Brandon"
    " Katherine Frank Christine Gregory Debra Raymond Rachel Samuel Olivia Patrick Carolyn Jack Maria Dennis Janet"
    " Jerry Heather Tyler Diane"
)
LAST_NAMES = _words(
    "Smith Johnson Williams Brown Jones Garcia Miller Davis Martinez Lopez Wilson Anderson Taylor Moore Jackson Martin"
    " Lee Perez Thompson White Harris Sanchez Clark Ramirez Lewis Robinson Walker Young Allen King Wright Scott Torres"
    " Nguyen Hill Flores Green Adams Nelson Baker Hall Rivera Campbell Mitchell Carter Roberts Gomez Phillips Evans"
    " Turner Diaz Parker Cruz Edwards Collins Reyes Stewart Morris Morales Murphy Cook Rogers Gutierrez Ortiz Morgan"
    " Cooper Peterson Bailey Reed Kelly Howard Ramos Kim Cox Ward Richardson Watson Brooks Chavez Wood Bennett Gray"
    " Mendoza Ruiz Hughes Price Alvarez Castillo Sanders Patel Myers Long Ross Foster Jimenez Powell Jenkins Perry"
    " Russell Sullivan Bell Coleman Butler Henderson Barnes Fisher Vasquez Simmons Graham Murray Ford Hamilton Kaplan"
    " Wallace Woods Cole West Jordan Owens Reynolds Ellis Harrison Gibson Marshall Wells Webb Tucker Hunter Hicks"
    " Crawford Henry Boyd Mason Kennedy Warren Dixon Burns Gordon Shaw Holmes Rice Robertson Hunt Black Daniels Palmer"
)
FIRM_HEADS = _words(
    "Brax Quel Orvi Tamb Zend Lurm Vask Fenn Morv Yelt Drusk Palv Greb Hult Nerv Sorv Kelm Wust Jant Obri Trell Mivv"
    " Cald Erst"
)
FIRM_TAILS = _words("ona idan ulo emar avik etta orin ulis anto iro")
TRADES = _words(
    "Freight Foods Paper Timber Energy Metals Supply Textiles Foundry Shipping Grain Tools Glass Motors Chemicals"
    " Printing"
)
HANDLE_HEADS = _words(
    "amber brisk cloud dusty ember frost giddy hazel ivory jolly lunar mossy noble opal plaid quick rusty silver tawny"
    " umber velvet windy zesty blue copper dapper early fuzzy golden humble"
)
HANDLE_TAILS = _words(
    "otter kettle falcon pebble anchor badger candle dragon engine fiddle garden hammer island jacket kernel lantern"
    " marble needle orchid pepper quiver ribbon saddle timber violin walnut yonder zipper beacon comet"
)
AREA_CODES = _words(
    "201 202 203 205 206 207 208 209 210 212 213 214 215 216 217 218 219 224 225 228 229 231 234 239 240 248 251"
    " 252 253 254 256 260 262 267 269 270 276 281 301 302 303 304 305 307 308 309 310 312 313 314 315 316 317 318"
    " 319 320 321 323 330 334 336 337 339 347 351 352 360 361 386 401 402 404 405 406 407 408 409 410 412 413 414"
    " 415 417 419 423 425 432 434 435 440 443 469 478 479 480 484 501 502 503 504 505 507 508 509 510 512 513 515"
    " 516 517 518 520 530 540 541 551 559 561 562 563 567 570 571 573 574 580 585 586 601 602 603 605 606 607 608"
    " 609 610 612 614 615 616 617 618 619 620"
)
