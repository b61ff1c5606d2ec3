//! The log: structured lines on standard error, for people.

use tracing_subscriber::filter::LevelFilter;

/// Begins to log. Colour only on a terminal; the time only where nobody else writes it.
pub fn begin() {
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let colour = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let lines = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(colour)
        .with_max_level(LevelFilter::INFO);
    if journal {
        lines.without_time().init()
    } else {
        lines.init()
    }
}
