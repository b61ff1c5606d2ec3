//! The text of a message after DATA: removes dot-stuffing, finds the end, and checks that each line ends with CRLF.
//! RFC 5321 sections 4.1.1.4 and 4.5.2.
//!
//! Only CRLF . CRLF ends a message, and a message with a single carriage return or line feed is refused: otherwise two relays
//! that treat line ends differently could see two messages where another saw one (SMTP smuggling).

/// The position after the last byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    LineStart,
    /// After a dot at the start of a line.
    Dot,
    /// After a line that is a dot, at its carriage return.
    DotReturn,
    Text,
    /// After a carriage return within a line.
    Return,
}

/// A decoder of the text of a message.
#[derive(Debug)]
pub struct DataDecoder {
    at: At,
    /// Bytes of the message so far.
    length: u64,
    bare: bool,
}

impl DataDecoder {
    pub fn new() -> Self {
        Self { at: At::LineStart, length: 0, bare: false }
    }

    /// Decodes bytes into `out`. Returns the number of consumed bytes if the end of the message is among them.
    pub fn decode(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Option<usize> {
        let before = out.len();
        let end = bytes.iter().position(|&byte| self.step(byte, out));
        self.length += (out.len() - before) as u64;
        end.map(|last| last + 1)
    }

    /// Bytes of the message so far, as SIZE counts them. RFC 1870 section 6.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Whether a line ended without CRLF.
    pub fn has_bare_line_ends(&self) -> bool {
        self.bare
    }

    fn step(&mut self, byte: u8, out: &mut Vec<u8>) -> bool {
        self.at = match (self.at, byte) {
            (At::LineStart, b'.') => {
                self.at = At::Dot;
                return false;
            }
            (At::Dot, b'\r') => {
                self.at = At::DotReturn;
                return false;
            }
            (At::DotReturn, b'\n') => return true,
            (before, byte) => {
                if before == At::DotReturn {
                    out.push(b'\r');
                    self.bare = true;
                }
                self.bare |= before == At::Return && byte != b'\n' || before != At::Return && byte == b'\n';
                match byte {
                    b'\r' => At::Return,
                    b'\n' if before == At::Return => At::LineStart,
                    _ => At::Text,
                }
            }
        };
        out.push(byte);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> (Vec<u8>, Option<usize>, bool) {
        let (mut text, mut out) = (DataDecoder::new(), Vec::new());
        let end = text.decode(bytes, &mut out);
        assert_eq!(text.length(), out.len() as u64);
        // The same in pieces of one byte.
        let (mut pieces, mut other) = (DataDecoder::new(), Vec::new());
        let ends = bytes.iter().position(|byte| pieces.decode(&[*byte], &mut other).is_some());
        assert_eq!((other.as_slice(), ends.map(|at| at + 1)), (out.as_slice(), end));
        (out, end, text.has_bare_line_ends())
    }

    #[test]
    fn a_single_dot_ends_the_message_and_a_leading_dot_is_removed() {
        assert_eq!(read(b".\r\nQUIT"), (b"".to_vec(), Some(3), false));
        assert_eq!(read(b"a\r\n..b\r\n.\r\nX"), (b"a\r\n.b\r\n".to_vec(), Some(11), false));
        assert_eq!(read(b"a\r\n.b\r\n"), (b"a\r\nb\r\n".to_vec(), None, false));
        assert_eq!(read(b"a.\r\n"), (b"a.\r\n".to_vec(), None, false));
    }

    #[test]
    fn bare_line_ends_never_end_a_message_and_are_reported() {
        for smuggled in [
            &b"a\n.\nMAIL"[..],
            b"a\r\n.\nMAIL",
            b"a\n.\r\nMAIL",
            b"a\r.\rMAIL",
            b"a\r\n.\rMAIL",
            b"a\r\r\n.x",
        ] {
            let (_, end, bare) = read(smuggled);
            assert_eq!((end, bare), (None, true), "{smuggled:?}");
        }
    }
}
