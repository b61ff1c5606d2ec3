//! Replies of the dialogue to commands in and out of order.

use super::*;

fn dialogue() -> Dialogue {
    Dialogue::new("mx.example", 1000)
}

/// Executes the lines and returns the codes of the replies.
fn codes(dialogue: &mut Dialogue, lines: &[&str]) -> Vec<u16> {
    let text = |action| match action {
        Action::Reply(text) | Action::Data(text) | Action::Quit(text) => text,
    };
    lines.iter().map(|line| text(dialogue.command(line.as_bytes()))[..3].parse().unwrap()).collect()
}

#[test]
fn a_whole_transaction_is_accepted() {
    let mut dialogue = dialogue();
    assert_eq!(dialogue.greeting(), "220 mx.example ESMTP\r\n");
    let lines =
        ["EHLO c.example", "mail from:<a@b> SIZE=10 BODY=8bitmime", "RCPT TO:<c@d>", "RCPT TO:<Postmaster>"];
    assert_eq!(codes(&mut dialogue, &lines), [250; 4]);
    assert!(matches!(dialogue.command(b"DATA"), Action::Data(_)));
    let to = vec!["c@d".to_owned(), "Postmaster".to_owned()];
    assert_eq!(dialogue.finish(), Envelope { from: "a@b".to_owned(), to });
    assert!(!dialogue.in_transaction());
    assert_eq!((dialogue.client(), dialogue.protocol()), ("c.example", "ESMTP"));
    assert!(matches!(dialogue.command(b"QUIT"), Action::Quit(_)));
}

#[test]
fn extensions_are_offered_after_ehlo_only() {
    let mut dialogue = dialogue();
    let Action::Reply(text) = dialogue.command(b"EHLO c") else { panic!() };
    assert_eq!(
        text,
        "250-mx.example greets c\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SIZE 1000\r\n250 HELP\r\n"
    );
    assert_eq!(dialogue.command(b"HELO c"), reply(250, "mx.example"));
    assert_eq!(codes(&mut dialogue, &["MAIL FROM:<a@b> SIZE=1"]), [555]);
}

#[test]
fn commands_out_of_order_get_503() {
    let mut dialogue = dialogue();
    assert_eq!(codes(&mut dialogue, &["MAIL FROM:<>", "RCPT TO:<a@b>", "DATA"]), [503; 3]);
    assert_eq!(codes(&mut dialogue, &["HELO c", "RCPT TO:<a@b>", "MAIL FROM:<>"]), [250, 503, 250]);
    assert_eq!(codes(&mut dialogue, &["MAIL FROM:<>", "DATA"]), [503, 554]);
    assert_eq!(
        codes(&mut dialogue, &["RSET", "DATA", "MAIL FROM:<>", "EHLO c", "DATA"]),
        [250, 503, 250, 250, 503]
    );
}

#[test]
fn malformed_arguments_get_501_and_unknown_commands_500() {
    let mut dialogue = dialogue();
    assert_eq!(
        codes(&mut dialogue, &["", "SING", "TURN", "EXPN a", "VRFY", "VRFY a"]),
        [500, 500, 500, 502, 501, 252]
    );
    assert_eq!(
        codes(&mut dialogue, &["EHLO", "EHLO a b", "EHLO [192.0.2.1]", "NOOP x", "HELP"]),
        [501, 501, 250, 250, 214]
    );
    assert_eq!(
        codes(&mut dialogue, &["RSET x", "QUIT x", "MAIL", "MAIL FROM:a@b", "MAIL FROM:<a>"]),
        [501; 5]
    );
    let mail = [
        "MAIL FROM:<a@b> SIZE=1001",
        "MAIL FROM:<a@b> SIZE=x",
        "MAIL FROM:<a@b> BODY=9BIT",
        "MAIL FROM:<a@b> X=1",
    ];
    assert_eq!(codes(&mut dialogue, &mail), [552, 501, 501, 555]);
    let recipients = ["MAIL FROM:<a@b>", "RCPT TO:<>", "RCPT TO:<a@b> X=1", "RCPT TO:a@b", "DATA x"];
    assert_eq!(codes(&mut dialogue, &recipients), [250, 501, 555, 501, 501]);
    assert_eq!(dialogue.command(b"NOOP \xff"), reply(500, "only ASCII is allowed"));
}

#[test]
fn a_recipient_over_the_limit_gets_452() {
    let mut dialogue = dialogue();
    codes(&mut dialogue, &["EHLO c", "MAIL FROM:<>"]);
    assert_eq!(codes(&mut dialogue, &["RCPT TO:<a@b>"; MAX_RECIPIENTS]), [250; MAX_RECIPIENTS]);
    assert_eq!(codes(&mut dialogue, &["RCPT TO:<a@b>"]), [452]);
}
