//! What an attacker would run: it tells what it has become.

/// `done` says that it runs at all, `capabilities` whether it has more than it may, `identity` whose it is.
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
        // SAFETY: they only ask.
        "identity" => unsafe {
            let [[effective, permitted, _], _] = capabilities();
            std::process::exit(i32::from(libc::geteuid() == 0 || effective | permitted != 0));
        },
        other => println!("what is {other:?}?"),
    }
}

/// The effective, permitted and inheritable words of this process, low and high.
fn capabilities() -> [[u32; 3]; 2] {
    let header = [0x2008_0522_u32, 0];
    let mut data = [[0; 3]; 2];
    crate::attack::call(
        libc::SYS_capget,
        [crate::attack::address(&header), crate::attack::address_mut(&mut data)],
    )
    .unwrap();
    data
}
