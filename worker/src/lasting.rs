//! A session that outlasts its broker: where the channel is at its end another is opened through the control socket, and
//! what the guards of this program hold is asked for again.
//!
//! Promises: the sockets that guards have serve on meanwhile, untouched; no attempt follows another at once, nor much
//! later than [`LONGEST_PAUSE`]; whoever follows events learns that some may be missing.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use portreeve_protocol::{Fault, FaultCode};
use tokio::net::UnixDatagram;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::ask;
use crate::channel::Channel;
use crate::error::Error;
use crate::request::Request;
use crate::state::{Holding, Shared, Standing, cookie};

/// The pause before the second attempt; it doubles each time.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How long a broker may take to answer one request of a session that it has just begun.
const PATIENCE: Duration = Duration::from_secs(15);

/// How a session is opened again.
#[derive(Debug)]
pub(crate) struct Again {
    /// The control socket.
    pub path: PathBuf,
    /// How this program calls itself.
    pub name: String,
}

/// Follows a session from its first channel to the end of its last.
pub(crate) async fn keep(shared: Arc<Shared>, mut reader: JoinHandle<Error>) {
    loop {
        // A reader that panicked has let go of its channel.
        let why = reader.await.unwrap_or(Error::Closed);
        let Some(again) = shared.again.as_ref().filter(|_| shared.lasts(&why)) else { break };
        match shared.reopen(again).await {
            Ok(next) => reader = next,
            Err(why) => {
                let mut state = shared.state();
                state.exchange.over = Some(why);
                state.exchange.followers.wake();
                break;
            }
        }
    }
    shared.standing.send_replace(Standing::Over);
}

impl Shared {
    /// Tries until there is a broker, or one that cannot be talked to.
    async fn reopen(self: &Arc<Self>, again: &Again) -> Result<JoinHandle<Error>, Error> {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.try_reopen(again).await {
                Err(why @ (Error::Version { .. } | Error::Protocol(_))) => return Err(why),
                Err(why) if self.state().closed => return Err(why),
                Err(_) => sleep(pause).await,
                Ok(reader) => return Ok(reader),
            }
            pause = LONGEST_PAUSE.min(pause * 2);
        }
    }

    async fn try_reopen(self: &Arc<Self>, again: &Again) -> Result<JoinHandle<Error>, Error> {
        let channel = Channel::connect_at_once(&again.path)?.socket;
        let channel = UnixDatagram::from_std(channel).map_err(Error::io("preparing the channel"))?;
        let channel = Arc::new(channel);
        {
            let mut state = self.state();
            if state.closed {
                return Err(Error::Closed);
            }
            state.let_go();
            state.channel = channel.clone();
            state.exchange.begin_again();
        }
        let reader = tokio::spawn(self.clone().read(channel.clone()));
        match self.restore(&channel, &again.name).await {
            Ok(()) => {
                self.standing.send_replace(Standing::Up);
                Ok(reader)
            }
            Err(why) => {
                // What it had been given goes with it.
                let _hung_up_already = channel.shutdown(std::net::Shutdown::Both);
                let _its_end_is_known = reader.await;
                Err(why)
            }
        }
    }

    async fn ask_in_time<O: Request>(&self, channel: &UnixDatagram, request: &O) -> Result<O::Output, Error> {
        timeout(PATIENCE, self.ask(channel, request)).await.map_err(|_| Error::Closed)?
    }

    /// Says hello, and asks for what is held.
    async fn restore(&self, channel: &UnixDatagram, name: &str) -> Result<(), Error> {
        let welcome = self.ask_in_time(channel, &ask::hello(name)).await?;
        self.state().welcome = Some(Arc::new(welcome));
        let wanted = self.state().exchange.followers.renew();
        if wanted.follow {
            match self.ask_in_time(channel, &wanted).await {
                // Where this broker lets it follow nothing, nothing is what it hears.
                Ok(_) | Err(Error::Fault(_)) => {}
                Err(why) => return Err(why),
            }
        }
        let held: Vec<Holding> = self.state().holdings.values().cloned().collect();
        for holding in &held {
            self.ask_again(channel, holding).await?;
        }
        self.state().holdings.retain(|_, holding| holding.number.is_wanted());
        Ok(())
    }

    /// Asks for a listener that a guard has a socket of.
    async fn ask_again(&self, channel: &UnixDatagram, holding: &Holding) -> Result<(), Error> {
        let number = &holding.number;
        match self.ask_in_time(channel, &holding.listen).await {
            Ok((id, socket)) => {
                let mut state = self.state();
                if number.is_wanted() && cookie(&socket) == holding.cookie {
                    number.set(Some(id));
                    return Ok(());
                }
                // Nobody serves on the socket that came.
                state.stop_soon(id);
                number.lose(Error::Fault(taken_out(holding)));
            }
            // The kernel finds the endpoint taken, and not the broker: by the socket of the guard, which serves on.
            Err(Error::Fault(fault)) if fault.code == FaultCode::InUse && fault.errno != 0 => {}
            // The broker has it, and there is no room for another copy here.
            Err(Error::DescriptorsLost) => {}
            Err(why @ Error::Fault(_)) => number.lose(why),
            Err(why) => return Err(why),
        }
        Ok(())
    }
}

fn taken_out(holding: &Holding) -> Fault {
    let message = format!("{} was taken out of service when its broker ended", holding.listen.endpoint);
    Fault::new(FaultCode::NotFound, &message).remedy("ask for it again")
}
