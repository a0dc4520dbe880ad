"""Which sound a file of a package is, by its name: the rules of data_prep/sounds.py, one table a package.

Nobody has listened to every file. A rule is a pattern of the path inside the package (lower case, no suffix) and a
label; the first that matches wins, and a file without one is left out and counted. Labels are plain English words.
"""

from __future__ import annotations

from dataclasses import dataclass

Rules = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class SoundPackage:
    """A Debian package with sounds."""

    name: str
    root: str
    """Folder of the sounds inside the unpacked package."""
    license: str
    """From the package's copyright file; where files differ, the most demanding is named first."""
    rules: Rules


DRUMS: Rules = (
    (
        r"hi-?hat|(?:^|[/_ -])c?hh(?:at)?(?![a-z])|hhopen|hhclosed|[/_ ]hat[_ ]|sabianhat|vp hat|openhat|closehihat|"
        r"hhpedal|millo_multilayered\d/ho_",
        "hi-hat",
    ),
    (r"crash|ride|splash|china|cymbal|[/_]cra_|millo_multilayered3/[cr]c_|bja_pacific/rd", "cymbal"),
    (r"cowbell|[/_](?:mc_)?cb2?_", "cowbell"),
    (r"rim|side ?stick|snare|bja_pacific/sn|[/_]sn_|[/_]sd_|[/ ]sd[_ ]?\d", "snare drum"),
    (r"kick|bass-?drum|[/_]bd2?_|[/_]bd\d", "kick drum"),
    (r"tom|[/_]tm\d?_|[/_]ft_", "tom-tom"),
    (r"clap", "hand clap"),
    (r"tambourine", "tambourine"),
    (r"conga", "conga"),
    (r"bongo", "bongo"),
    (r"djembe", "djembe"),
    (r"agogo", "agogo bell"),
    (r"clave", "claves"),
    (r"wood-?block", "wood block"),
    (r"waterglass", "glass"),
    (r"shaker|maraca|cabasa", "shaker"),
    (r"triangle", "triangle"),
    (r"gong", "gong"),
)  # fmt: skip

SCRATCH: Rules = (
    (r"animal/(?:cat|kitten|meow)", "cat"),
    (r"animal/cricket", "cricket"),
    (r"animal/dog", "dog"),
    (r"animal/duck", "duck"),
    (r"animal/goose", "goose"),
    (r"animal/horse", "horse"),
    (r"animal/owl", "owl"),
    (r"animal/bird", "bird"),
    (r"animal/rooster", "rooster"),
    (r"animal/sealion", "sea lion"),
    (r"animal/wolfhowl", "wolf"),
    (r"effects/belltoll", "bell"),
    (r"effects/(?:bubbles|ripples|water|plunge)", "water"),
    (r"effects/door", "door"),
    (r"effects/(?:car|motorcycle)passing", "vehicle"),
    (r"effects/typing", "keyboard typing"),
    (r"effects/sewingmachine", "sewing machine"),
    (r"electronic/computerbeeps", "beep"),
    (r"electronic/laser", "laser"),
    (r"human/babycry", "crying baby"),
    (r"human/cough", "cough"),
    (r"human/fingersnap", "finger snap"),
    (r"human/footsteps", "footsteps"),
    (r"human/laugh", "laughter"),
    (r"human/scream", "scream"),
    (r"human/sneeze", "sneeze"),
    (r"human/slurp", "slurping"),
    (r"human/partynoise", "crowd"),
    (r"instruments/guitarstrum", "guitar"),
    (r"instruments/dijjeridoo", "didgeridoo"),
    (r"instruments/tambura", "tambura"),
    (r"instruments/trumpet", "trumpet"),
    (r"percussion/gong", "gong"),
    (r"percussion/handclap", "hand clap"),
    (r"percussion/.*cymbal", "cymbal"),
    (r"percussion/shaker", "shaker"),
    (r"music loops/guitar", "guitar"),
    (r"music loops/humanbeatbox", "beatboxing"),
    (r"music loops/xylo", "xylophone"),
    (r"music loops/drum", "drum kit"),
)

SONIC_PI: Rules = (
    (r"/bd_|kick", "kick drum"),
    (r"snare|/sn_", "snare drum"),
    (r"cymbal|splash", "cymbal"),
    (r"_tom|fuzz_tom", "tom-tom"),
    (r"cowbell", "cowbell"),
    (r"/drum_roll", "drum roll"),
    (r"tabla_", "tabla"),
    (r"guit_", "guitar"),
    (r"ambi_piano", "piano"),
    (r"ambi_choir", "choir"),
    (r"ambi_glass", "glass"),
    (r"misc_crow", "crow"),
    (r"misc_burp", "burp"),
    (r"perc_bell|elec_bell", "bell"),
    (r"triangle", "triangle"),
    (r"perc_door", "door"),
    (r"perc_snap", "finger snap"),
    (r"perc_till", "cash register"),
    (r"elec_beep|elec_blip", "beep"),
    (r"loop_3d_printer", "printer"),
    (r"mehackit_phone", "telephone"),
    (r"/vinyl_", "record player"),
    (r"/bass_", "synthesizer bass"),
)

WESNOTH: Rules = (
    (r"(?:human|dwarf|elf|mermen|mermaid|lich)(?:-female|-old|-small)?-(?:hit|die)", "cry of pain"),
    (r"/wolf-", "wolf"),
    (r"/horse-", "horse"),
    (r"ambient/birds", "bird"),
    (r"ambient/wardrums", "drum"),
    (r"campfire|flame|/torch|melee-fire|/fire", "fire"),
    (r"horn-signals|/horn", "horn"),
    (r"/(?:cross)?bow(?:-|$|\d)", "bow and arrow"),
    (r"/sword|/knife|throwing-knife|/axe", "blade"),
    (r"lightning", "thunder"),
    (r"explosion", "explosion"),
    (r"thunderstick", "gunshot"),
    (r"/gold", "coins"),
    (r"/fist", "punch"),
)

TUXPAINT: Rules = (
    (r"birds/(?:rooster|crow|owl|duck|cuckoo|seagull|turkey|penguin|hen|blackbird|lark|vulture)$", "="),
    (r"birds/drake", "duck"),
    (r"birds/gander", "goose"),
    (r"birds/", "bird"),
    (r"insects/(?:bee|mosquito|hornet|grasshopper)$", "="),
    (r"amphibians/frog", "frog"),
    (r"aquatic/sea_lion", "sea lion"),
    (r"aquatic/(?:whale|orca|dolphin)", "="),
    (r"mammals/(?:cats/(?:lion|tiger)|dogs/(?:fox|dog)|elephant|equines/(?:horse|zebra|donkey)|bears/bear)$", "="),
    (r"mammals/pig", "pig"),
    (r"bovines/sheep|bovines/ram", "sheep"),
    (r"bovines/(?:cow|bull)", "cow"),
    (r"goat", "goat"),
    (r"deer/", "deer"),
    (r"apes/", "ape"),
    (r"rodents/(?:mouse|squirrel|beaver)$", "="),
    (r"halloween/blackcat", "cat"),
    (r"household/vacuum_cleaner", "vacuum cleaner"),
    (r"household/washing-machine", "washing machine"),
    (r"household/(?:toilet|kettle)$", "="),
    (r"tools/hammer|tools/mallet", "hammer"),
    (r"tools/saw", "saw"),
    (r"scissors", "scissors"),
    (r"string/(?:cello|violin)$", "="),
    (r"wind/bassoon", "bassoon"),
    (r"percussion/cymbal", "cymbal"),
    (r"percussion/drum_tomtom", "tom-tom"),
    (r"percussion/drumkit", "drum kit"),
    (r"camera", "camera"),
    (r"fireworks", "fireworks"),
    (r"lightningbolt", "thunder"),
    (r"firetruck", "siren"),
)
"""``=``: the file's own name is the label."""

SOUND_ICONS: Rules = (
    (r"/guitar", "guitar"),
    (r"/trumpet", "trumpet"),
    (r"electric-piano", "electric piano"),
    (r"/piano", "piano"),
    (r"/violoncello", "cello"),
    (r"/canary", "bird"),
    (r"/xylofon", "xylophone"),
    (r"/glass-water", "glass"),
    (r"/cembalo", "harpsichord"),
    (r"/klavichord", "clavichord"),
)

FREEDESKTOP: Rules = (
    (r"alarm-clock", "alarm clock"),
    (r"/bell", "bell"),
    (r"camera-shutter", "camera"),
    (r"phone-(?:incoming|outgoing)", "telephone"),
)

SOUND_PACKAGES = (
    SoundPackage("bucklespring-data", "usr/share", "GPL-2.0-or-later", ((r".", "keyboard typing"),)),
    SoundPackage("hydrogen-drumkits", "usr/share/hydrogen/data/drumkits", "GPL-2.0, CC-BY and others by kit", DRUMS),
    SoundPackage("scratch", "usr/share/scratch/Media/Sounds", "CC-BY-SA-3.0", SCRATCH),
    SoundPackage("sonic-pi-samples", "usr/share", "CC-BY-SA-4.0 (some), CC0-1.0 (most)", SONIC_PI),
    SoundPackage("sound-icons", "usr/share", "GPL-2.0-or-later", SOUND_ICONS),
    SoundPackage("sound-theme-freedesktop", "usr/share/sounds", "GPL-2.0, CC-BY-SA-3.0, CC-BY-3.0", FREEDESKTOP),
    SoundPackage("tuxpaint-stamps-default", "usr/share/tuxpaint/stamps", "GPL-2.0-or-later", TUXPAINT),
    SoundPackage("wesnoth-1.16-data", "usr/share/games/wesnoth", "GPL-2.0-or-later", WESNOTH),
)
