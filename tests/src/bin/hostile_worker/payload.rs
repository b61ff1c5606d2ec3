//! The program that an attacker would run: it reports its privileges.

/// `done` reports that it runs at all, `capabilities` whether it has more capabilities than allowed; `identity` exits with
/// status 1 if it is root or has capabilities.
pub fn run(what: &str) {
    match what {
        "done" => println!("done"),
        "capabilities" => {
            const NET_BIND_SERVICE: u32 = 1 << 10;
            let [[effective, ..], [high, ..]] = capabilities();
            if effective & !NET_BIND_SERVICE == 0 && high == 0 {
                println!("held nothing gained");
            } else {
                println!("done");
            }
        }
        // SAFETY: geteuid has no preconditions.
        "identity" => unsafe {
            let [[effective, permitted, _], _] = capabilities();
            std::process::exit(i32::from(libc::geteuid() == 0 || effective | permitted != 0));
        },
        other => println!("unknown argument: {other:?}"),
    }
}

/// The effective, permitted and inheritable capabilities of this process: the low words, then the high words.
pub fn capabilities() -> [[u32; 3]; 2] {
    let header = [0x2008_0522_u32, 0];
    let mut data = [[0; 3]; 2];
    crate::attack::call(
        libc::SYS_capget,
        [crate::attack::address(&header), crate::attack::address_mut(&mut data)],
    )
    .unwrap();
    data
}
