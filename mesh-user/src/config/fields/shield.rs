//! `shield`.

use super::{Absent, Object, Shape, Text, field, needed};

static INTERFACE: Shape = Shape::Text(Text::Name);
static RANGE: Shape = Shape::Text(Text::Cidr);
static DENY_OBJECT: Shape = Shape::Object(&DENY);
static DENY_ITEM: Shape = Shape::Either(&RANGE, &DENY_OBJECT);
static LIST_FILE: Shape = Shape::Text(Text::AbsolutePath);

/// `shield`.
pub(crate) static SHIELD: Object = Object {
    name: "Shield",
    doc: "Drops frames at the node's interfaces before the kernel makes anything of them \
          (docs/SHIELD.md). Without this field nothing of it is loaded.",
    fields: &[
        field(
            "interfaces",
            Shape::list(&INTERFACE, 64),
            Absent::Default("[auto]", "what the world reaches the node by"),
            "Names of interfaces; `auto`: those of the default routes. One that is not there is \
             waited for.",
        ),
        field(
            "mode",
            Shape::Choice(&[
                (
                    "auto",
                    "in the driver where that costs nothing else, otherwise at tc ingress",
                ),
                ("native", "in the driver, or not at all; never on a veth"),
                (
                    "force-native",
                    "in the driver, also on a veth, whose peer loses segmentation offload",
                ),
                ("tc", "at tc ingress"),
                ("off", "nowhere; lists and counters are kept"),
            ]),
            Absent::Default("auto", "the fastest that harms nobody"),
            "Where the programs are attached. A program of somebody else is never replaced.",
        ),
        field(
            "allow",
            Shape::list(&RANGE, 1_000),
            Absent::Means("none"),
            "Ranges whose frames always pass: they win over every other rule of the shield.",
        ),
        field(
            "deny",
            Shape::list(&DENY_ITEM, 2_000),
            Absent::Means("none"),
            "Ranges whose frames are dropped. The longest counts.",
        ),
        field(
            "deny-files",
            Shape::list(&LIST_FILE, 64),
            Absent::Means("none"),
            "Files with one range a line whose frames are dropped; `#` begins a comment. Read again \
             when they change. One that can't be used keeps its last good content in force. At most \
             1,000,000 ranges in all lists.",
        ),
        field(
            "syn-rate",
            Shape::Object(&RATE),
            Absent::Means("no limit"),
            "TCP SYNs of each source: an IPv4 address or an IPv6 /64.",
        ),
        field(
            "connection-rate",
            Shape::Object(&RATE),
            Absent::Means("no limit"),
            "New TCP connections of each source: a SYN that is sent again is not counted again.",
        ),
        field(
            "bogus-flags",
            Shape::Choice(&[("drop", "they are dropped"), ("pass", "they pass")]),
            Absent::Default("drop", "no TCP sends them"),
            "Frames with TCP flags that no TCP sends together, and fragments that split the TCP \
             header.",
        ),
    ],
    groups: &[],
};

/// An entry of `shield.deny`.
pub(crate) static DENY: Object = Object {
    name: "ShieldDeny",
    doc: "A range that is denied.",
    fields: &[
        needed("cidr", Shape::Text(Text::Cidr), "A range, or one address."),
        field(
            "rule-name",
            Shape::Text(Text::Name),
            Absent::Means("the range"),
            "The name under which its frames are counted; several ranges may share one.",
        ),
    ],
    groups: &[],
};

static RATE: Object = Object {
    name: "ShieldRate",
    doc: "A token bucket for each source.",
    fields: &[
        needed("rate", Shape::Text(Text::Rate), "How many, in which time."),
        field(
            "burst",
            Shape::Int {
                min: 1,
                max: 1_000_000,
            },
            Absent::Means("the number of `rate`, at most 1,000,000"),
            "How many at once.",
        ),
    ],
    groups: &[],
};
