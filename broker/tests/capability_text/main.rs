//! The capability text parser against libcap itself: the tests load the library and compare results for a corpus and for
//! more than a million generated texts. Promises: no difference in what is accepted, in the three sets, or in the text
//! written back. Touches nothing but its own memory. Fails, and names the package, if libcap is missing.
// Tests may panic. clippy.toml allows that in test functions; this allows it in their helpers.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod generator;
mod libcap;

use std::ffi::c_int;

use generator::{Random, grammatical, mutate};
use libcap::Libcap;
use portreeve_broker::capability::{Count, Problem, last_cap, parse};

/// Typical texts, and each quirk found in libcap.
const CORPUS: &[&str] = &[
    "",
    " ",
    "\t\n\u{b}\u{c}\r ",
    "=",
    "= ",
    "=e",
    "=eip",
    "=pie",
    "=eeee",
    "=ep cap_chown-e",
    "all=",
    "all=eip",
    "ALL=ep",
    "all+p",
    "all-e",
    "cap_net_bind_service=ep",
    "CAP_NET_BIND_SERVICE+EP",
    "Cap_Net_Admin,cap_NET_raw+eip",
    "cap_net_admin,cap_net_raw=ep cap_net_raw-e",
    "cap_chown+e-i",
    "cap_chown=e+p-i",
    "cap_chown=+e",
    "cap_chown=-e",
    "cap_chown=+",
    "cap_chown=-",
    "=+e",
    "=-e",
    "=e+p",
    "+e",
    "-e",
    "cap_chown",
    "cap_chown ",
    "cap_chown =e",
    "cap_chown= e",
    "cap_chown=e ,",
    ",cap_chown=e",
    "cap_chown,=e",
    "cap_chown,,cap_kill=e",
    "cap_chown, cap_kill=e",
    "cap_chown==e",
    "cap_chown++e",
    "cap_chown+",
    "cap_chown-",
    "cap_chown+e+",
    "cap_chown+e+ ",
    "cap_chown=E",
    "cap_chown=x",
    "chown=e",
    "cap_nonesuch=e",
    "cap_chow=e",
    "cap_chown1=e",
    "cap_chown_=e",
    "_=e",
    "_cap_chown=e",
    "all1=e",
    "all_=e",
    "alle=e",
    "all,cap_chown=e",
    "cap_chown,all-e",
    "0=e",
    "00=e",
    "0,1,2=ep",
    "40=e",
    "41=e",
    "63=eip",
    "64=e",
    "077=e",
    "0100=e",
    "08=e",
    "09+e",
    "0x=e",
    "0xg=e",
    "0x3f=e",
    "0X3F=e",
    "0x40=e",
    "0x3Fg=e",
    "18446744073709551616=e",
    "18446744073709551615=e",
    "00000000000000000000000000000000000000001=e",
    "4294967296=e",
    "256=e",
    "+1=e",
    "-1=e",
    "1e=e",
    "1_=e",
    "63,all=e",
    "all,63=e",
    "63+e 63-e",
    "62+i 63+p",
    "=eip 63+eip",
    "=eip 41-e",
    "=ep 62,63+ep",
    "cap_chown=ep\u{b}cap_kill+i",
    "cap_chown=ep\u{a0}cap_kill+i",
    "é=e",
    "=é",
    "cap_chown=e\u{e9}",
    "cap_é=e",
    "cap_chown=e;",
    "cap_chown:e",
    "=p cap_chown-p cap_kill+e",
    "=i cap_chown+e",
    "cap_chown=e\ncap_kill=p\n",
    "=e=p",
    "cap_chown=e=p",
    "all=ep cap_sys_admin,cap_setpcap-ep",
    "0b1=e",
    "0o1=e",
    "1,=e",
    "=,e",
];

#[test]
fn corpus_texts_parse_as_in_libcap() {
    let libcap = Libcap::load();
    let differences: Vec<String> = CORPUS.iter().filter_map(|text| libcap.agrees(text).err()).collect();
    assert!(differences.is_empty(), "{differences:#?}");
}

#[test]
fn every_capability_with_every_flag_parses_as_in_libcap() {
    let libcap = Libcap::load();
    for set in Count::new(64).all().names().chain(["64".into()]) {
        for flags in ["e", "p", "i", "ep", "pi", "ei", "eip"] {
            for text in [format!("{set}={flags}"), format!("=eip {set}-{flags}"), format!("={flags} {set}=")]
            {
                libcap.agrees(&text).unwrap();
            }
        }
    }
}

#[test]
fn capability_count_matches_libcap() {
    assert_eq!(Libcap::load().max_bits(), c_int::from(Count::of_kernel().get()));
}

/// Compares this many generated texts. Returns how many libcap accepted, and the first differences.
fn compare(seed: u64, texts: usize) -> (usize, Vec<String>) {
    let libcap = Libcap::load();
    let mut random = Random(seed);
    // Includes one name past the kernel's last capability, to test the end of the range often.
    let names: Vec<String> = Count::new(last_cap() + 2).all().names().collect();
    let (mut accepted, mut differences, mut text) = (0, Vec::new(), String::new());
    for number in 0..texts {
        text.clear();
        grammatical(&mut random, &names, &mut text);
        if number % 4 == 0 {
            mutate(&mut random, &mut text);
        }
        match libcap.agrees(&text) {
            Ok(was_accepted) => accepted += usize::from(was_accepted),
            Err(difference) if differences.len() < 10 => differences.push(difference),
            Err(_) => {}
        }
    }
    (accepted, differences)
}

#[test]
fn a_million_generated_texts_parse_as_in_libcap() {
    const TEXTS: usize = 600_000;
    const SEEDS: [u64; 2] = [0x5ca1_ab1e_0ddb_a11d, 0x0b5e_55ed_5eed_5a17];
    let halves = SEEDS.map(|seed| std::thread::spawn(move || compare(seed, TEXTS)));
    for (seed, half) in SEEDS.into_iter().zip(halves) {
        let (accepted, differences) = half.join().unwrap();
        println!(
            "seed {seed:#x}: {TEXTS} texts, {accepted} accepted by libcap, {} differ",
            differences.len()
        );
        assert!(differences.is_empty(), "seed {seed:#x}: {differences:#?}");
        // Both verdicts must be common, or the comparison proves little.
        assert!((TEXTS / 4..TEXTS * 3 / 4).contains(&accepted), "seed {seed:#x}: {accepted} accepted");
    }
}

#[test]
fn parse_errors_give_position_and_remedy() {
    for (text, span, message) in [
        ("cap_net_bind=ep", 0..12, r#"no capability is named "cap_net_bind": write cap_net_bind_service"#),
        ("cap_chown,net_admin=ep", 10..19, r#"no capability is named "net_admin": write cap_net_admin"#),
        ("cap_kill+ep CAP_NET_RWA=p", 12..23, r#"no capability is named "CAP_NET_RWA": write cap_net_raw"#),
        ("wibble=e", 0..6, r#"no capability is named "wibble": see capabilities(7) for the names"#),
        (
            "1,64=e",
            2..4,
            r#""64" is above 63, the highest capability number: the highest capability of this kernel is 40"#,
        ),
        (
            "0x40=e",
            0..4,
            r#""0x40" is above 63, the highest capability number: the highest capability of this kernel is 40"#,
        ),
        (
            "cap_chown,=e",
            10..11,
            "a capability is missing after the comma: write a capability there, or remove the comma",
        ),
        (
            "+e",
            0..1,
            "a list of capabilities is missing before '+': name the capabilities, or all, before the operator",
        ),
        (
            "cap_chown",
            9..9,
            "an operator is missing after the list of capabilities: follow the list with =, + or - and the flags, as in cap_net_admin=ep",
        ),
        (
            "cap_chown+",
            10..10,
            "a flag is missing after '+': write one or more of e, i and p; only = can be without flags",
        ),
        ("cap_chown=eP", 11..12, "'P' is not a flag: write flags e, i and p in lower case"),
        ("é=e", 0..2, "'é' cannot start a clause: start with a capability, with all, or with ="),
    ] {
        let error = parse(text).unwrap_err();
        let message = message.replace("is 40", &format!("is {}", last_cap()));
        assert_eq!((error.span.clone(), error.to_string()), (span, message), "{text}");
    }
    assert_eq!(parse("=\0").unwrap_err().problem, Problem::Zero);
}
