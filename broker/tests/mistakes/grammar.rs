//! Syntax errors.

use super::{assert_report, report_of};

#[test]
fn mistakes_in_the_grammar() {
    assert_report!(&[
        ("a value is missing", "security {\n  user =\n  group = mail\n}\n"),
        ("a name alone", "security {\n  user\n}\n"),
        ("a name alone before an option", "security {\n  user\n  group = mail\n}\n"),
        ("no = before a value", "security {\n  user mail\n}\n"),
        ("a scope is not closed", "security {\n  user = mail\n"),
        ("a scope is closed twice", "security {\n  user = mail\n}\n}\n"),
        ("a quote is not closed", "security {\n  user = \"mail\n}\n"),
        ("a forgotten quote swallows the next line", "security {\n  user = \"mail\n  group = \"mail\"\n}\n"),
        ("a comment is not closed", "/* the worker\nsecurity {}\n"),
        ("a list is not closed", "security {\n  supplemental_groups = ( mail adm\n  user = mail\n}\n"),
        ("a list is not closed before the scope ends", "security {\n  supplemental_groups = ( mail\n}\n"),
        ("a dictionary is not closed", "worker {\n  environment = [ TZ = UTC\n}\n"),
        ("a dictionary key without a value", "worker { environment = [ TZ ] }"),
        ("a list in a dictionary", "worker { environment = [ TZ = ( a b ) ] }"),
        ("a list in a list", "security { supplemental_groups = ( a ( b ) ) }"),
        ("two commas in a list", "security { supplemental_groups = ( a,, b ) }"),
        ("commas without a list", "security {\n  supplemental_groups = mail, adm\n}\n"),
        ("a comma in a dictionary", "worker { environment = [ A = 1, B = 2 ] }"),
        ("a semicolon", "security { user = mail; }"),
        ("single quotes", "security { user = 'mail' }"),
        ("a C++ comment", "// the worker\nsecurity { user = mail }\n"),
        ("a name with a hyphen", "security { user-name = mail }"),
        ("a quoted name", "\"security\" { user = mail }"),
        ("a scope without a name", "{ user = mail }"),
        ("a scope's value", "worker = \"x\" { }"),
        ("brackets alone", "( a b )"),
        ("= alone", "= mail"),
        ("include without a file", "include\n"),
        ("include with =", "include = \"parts.conf\"\n"),
        ("a control character", "security { user = \u{1b}[31m }"),
        ("an ellipsis from an example", "security {\n  ... other options here ...\n  user = mail\n}\n"),
        ("an ellipsis from an example, in rules", "ESMTP_Listener = ( *:25 [ ... ACL ... ] )\n"),
        ("a placeholder", "security {\n  <options>\n}\n"),
        (
            "a listener of Momentum 2",
            "Esmtp_Listener = (\n  *:25,200 <proto=ipv4> [\n    0.0.0.0/0 = ( continue )\n  ]\n)\n"
        ),
        (
            "an attribute of Momentum 2",
            "Binding example <duravip=\"enabled\"> {\n  bind_address = 10.0.0.1\n}\n"
        ),
        ("an attribute that is not closed", "Binding example <duravip=\"enabled\" {\n}\n"),
        ("rules that are not closed", "Esmtp_Listener = (\n  *:25 [\n    10.0.0.0/8 = ( continue )\n)\n"),
        ("rules that are closed by a brace", "Esmtp_Listener = (\n  *:25\n}\n"),
        ("rules without a network", "Esmtp_Listener = (\n  *:25 [ = ( continue ) ]\n)\n"),
        ("rules for nothing", "Esmtp_Listener = (\n  ( continue )\n)\n"),
        ("rules with a key alone", "Esmtp_Listener = (\n  *:25 [ 10.0.0.0/8 ]\n)\n"),
        ("rules with nothing after =", "Esmtp_Listener = (\n  *:25 [ 10.0.0.0/8 = ]\n)\n"),
        ("an = outside of rules", "Esmtp_Listener = ( *:25 = 5 )\n"),
        ("a comma in rules", "Esmtp_Listener = ( , *:25 )\n"),
        ("an INI file", "[security]\nuser = mail\n"),
        ("a JSON file", "{ \"security\": { \"user\": \"mail\" } }\n"),
        ("a YAML file", "security:\n  user: mail\n"),
        ("a list closed by a bracket", "security { supplemental_groups = ( mail ] }\n"),
        ("a dictionary closed by a parenthesis", "worker { environment = [ TZ = UTC ) }\n"),
        ("a dictionary in parentheses", "worker { environment = ( TZ = UTC ) }\n"),
        ("lists in lists in lists", "x = ( ( ( ( a ) ) ) b )\n"),
        (
            "a value with spaces and no quotes",
            "security {\n  capabilities = cap_net_admin+ep cap_net_raw+ep\n}\n"
        ),
        ("a space of another kind", "security\u{a0}{ user = mail }\n"),
        ("a space that does not break after a name", "security {\n  user\u{a0}= mail\n}\n"),
        ("typographic quotes around several words", "security {\n  user = \u{201c}mail server\u{201d}\n}\n"),
        (
            "a typographic quote that closes a string",
            "security {\n  user = \"mail\u{201d}\n  group = mail\n}\n"
        ),
        ("French quotes", "security {\n  chroot = \u{ab}\u{a0}/srv/mail\u{a0}\u{bb}\n}\n"),
        (
            "a typographic quote in a comment beside a mistake",
            "security {\n  user = mail; # the \u{201c}MTA\u{201d}\n}\n"
        ),
        ("a character without width", "\u{200b}security {\n  user = mail\n}\n"),
        ("a typographic dash", "security {\n  user \u{2013} mail\n}\n"),
        ("NUL", "security {\n  user = mail\0\0\0\n}\n\0\0"),
        ("two files to include", "include a.conf b.conf\n"),
        ("everything at once", "a = b = c\n} ; ' \n security { user }\n"),
    ]);
}
