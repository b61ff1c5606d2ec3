//! What the table of leases promises.

use std::time::Duration;

use super::*;

const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

fn lease(epoch: u64, deadline: BootTime) -> Lease {
    Lease {
        place: Place { address: ADDRESS, index: 1, prefix: 32 },
        interface: Text::default(),
        holder: Holder::Worker,
        lifetime: Some(3),
        deadline: Some(deadline),
        warned: false,
        epoch,
        follows: None,
        state: State::Held,
        series: 0,
        put_back: VecDeque::new(),
    }
}

fn code<T>(result: Result<T, Fault>) -> Option<FaultCode> {
    result.err().map(|fault| fault.code)
}

#[test]
fn an_epoch_never_goes_back_even_when_its_address_is_gone() {
    let (now, mut table) = (BootTime::now(), Table::default());
    let end = now.after(Duration::from_secs(9));
    table.enter(lease(5, end), 9).unwrap();
    assert_eq!(code(table.of(ADDRESS, None, 4, now)), Some(FaultCode::Expired));
    assert_eq!(table.of(ADDRESS, None, 6, now).unwrap().epoch, 6);
    table.remove(ADDRESS, false);
    assert_eq!(code(table.enter(lease(5, end), 9)), Some(FaultCode::Expired));
    table.enter(lease(6, end), 9).unwrap();
}

#[test]
fn a_lease_that_ended_is_not_renewed() {
    let (now, mut table) = (BootTime::now(), Table::default());
    let end = now.after(Duration::from_secs(3));
    table.enter(lease(0, end), 9).unwrap();
    assert!(table.of(ADDRESS, Some(Holder::Worker), 0, now).is_ok());
    assert_eq!(code(table.of(ADDRESS, Some(Holder::Worker), 0, end)), Some(FaultCode::Expired));
    assert_eq!(table.over(end), [ADDRESS]);
    table.remove(ADDRESS, true);
    assert_eq!(code(table.of(ADDRESS, Some(Holder::Worker), 0, end)), Some(FaultCode::Expired));
}

#[test]
fn an_address_has_one_holder() {
    let (now, mut table) = (BootTime::now(), Table::default());
    table.enter(lease(0, now.after(Duration::from_secs(9))), 9).unwrap();
    assert_eq!(code(table.enter(lease(0, now.after(Duration::from_secs(9))), 9)), Some(FaultCode::InUse));
    assert_eq!(code(table.of(ADDRESS, Some(Holder::User(8)), 0, now)), Some(FaultCode::NotFound));
    assert!(table.of(ADDRESS, None, 0, now).is_ok());
}

#[test]
fn each_holder_has_its_own_quota_and_gets_back_what_it_gives_up() {
    let mut table = Table::default();
    let enter = |table: &mut Table, last: u8, holder: Holder| {
        let address = IpAddr::from([192, 0, 2, last]);
        let place = Place { address, index: 1, prefix: 32 };
        table.enter(Lease { place, holder, ..lease(0, BootTime::now()) }, 2)
    };
    enter(&mut table, 1, Holder::Worker).unwrap();
    enter(&mut table, 2, Holder::Worker).unwrap();
    assert_eq!(code(enter(&mut table, 3, Holder::Worker)), Some(FaultCode::Quota));
    enter(&mut table, 3, Holder::User(8)).unwrap();
    table.remove([192, 0, 2, 1].into(), false);
    enter(&mut table, 1, Holder::Worker).unwrap();
    assert_eq!(code(enter(&mut table, 4, Holder::Worker)), Some(FaultCode::Quota));
}

#[test]
fn an_address_is_put_back_so_often_in_a_minute_and_again_after_it() {
    let (begin, mut lease) = (Instant::now(), lease(0, BootTime::now()));
    let at = |seconds: u64| begin + Duration::from_secs(seconds);
    let put_back: Vec<u64> = (0..150).filter(|second| lease.may_be_put_back(at(*second), 3)).collect();
    assert_eq!(put_back, [0, 1, 2, 60, 61, 62, 120, 121, 122]);
    assert!(!lease.may_be_put_back(at(300), 0));
}

#[test]
fn the_kernel_is_told_no_more_seconds_than_a_lease_has() {
    let now = BootTime::now();
    for (left, seconds) in [(9_999, 9), (1_000, 1), (999, 0), (0, 0)] {
        let lease = lease(0, now.after(Duration::from_millis(left)));
        assert_eq!((lease.left(now), lease.is_ending(now)), (Some(seconds), seconds == 0));
    }
    let for_ever = Lease { deadline: None, ..lease(0, now) };
    assert_eq!((for_ever.left(now), for_ever.is_ending(now)), (None, false));
}
