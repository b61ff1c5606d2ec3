//! Tests of the promises of the lease table.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use portreeve_protocol::Text;

use super::*;
use crate::address::lease_end::{ROUNDING, kernel_seconds};
use crate::sys::rtnl::Placement;

const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

fn lease(epoch: u64, deadline: BootTime) -> Lease {
    Lease {
        placement: Placement { address: ADDRESS, index: 1, prefix: 32 },
        interface: Text::default(),
        holder: Holder::Worker,
        lifetime: Some(3),
        deadline: Some(deadline),
        renewed_with_all: false,
        kernel_deadline: None,
        expiry_notified: false,
        epoch,
        follows: None,
        state: LeaseState::Held,
        announcement_series: 0,
        restored: VecDeque::new(),
        removed_with_link: false,
    }
}

fn code<T>(result: Result<T, Fault>) -> Option<FaultCode> {
    result.err().map(|fault| fault.code)
}

const LIMIT: Limit = Limit { max: 9, is_coordinator: false };
const A: Holder = Holder::User(1001);
const B: Holder = Holder::User(1002);

#[test]
fn an_epoch_never_decreases_even_after_the_removal_of_its_address() {
    let (now, mut table) = (BootTime::now(), LeaseTable::default());
    let end = now.saturating_add(Duration::from_secs(9));
    table.insert_new(lease(5, end), LIMIT).unwrap();
    assert_eq!(code(table.find_for(ADDRESS, Holder::Worker, 4, now)), Some(FaultCode::Expired));
    assert_eq!(table.find_for(ADDRESS, Holder::Worker, 6, now).unwrap().epoch, 6);
    table.remove(ADDRESS, false);
    assert_eq!(code(table.insert_new(lease(5, end), LIMIT)), Some(FaultCode::Expired));
    table.insert_new(lease(6, end), LIMIT).unwrap();
}

#[test]
fn an_expired_lease_is_not_renewed() {
    let (now, mut table) = (BootTime::now(), LeaseTable::default());
    let end = now.saturating_add(Duration::from_secs(3));
    table.insert_new(lease(0, end), LIMIT).unwrap();
    assert!(table.find_for(ADDRESS, Holder::Worker, 0, now).is_ok());
    assert_eq!(code(table.find_for(ADDRESS, Holder::Worker, 0, end)), Some(FaultCode::Expired));
    assert_eq!(table.expired(end), [ADDRESS]);
    table.remove(ADDRESS, true);
    assert_eq!(code(table.find_for(ADDRESS, Holder::Worker, 0, end)), Some(FaultCode::Expired));
}

#[test]
fn an_address_has_one_holder() {
    let (now, mut table) = (BootTime::now(), LeaseTable::default());
    table.insert_new(lease(0, now.saturating_add(Duration::from_secs(9))), LIMIT).unwrap();
    assert_eq!(
        code(table.insert_new(lease(0, now.saturating_add(Duration::from_secs(9))), LIMIT)),
        Some(FaultCode::InUse)
    );
    assert_eq!(code(table.find_for(ADDRESS, Holder::User(8), 0, now)), Some(FaultCode::NotFound));
    assert_eq!(
        code(table.check_removable(ADDRESS, Holder::User(8), false, 0, now)),
        Some(FaultCode::NotFound)
    );
    assert!(table.check_removable(ADDRESS, Holder::ROOT, true, 0, now).is_ok());
}

#[test]
fn a_request_of_another_holder_neither_learns_nor_changes_an_epoch() {
    let (now, mut table) = (BootTime::now(), LeaseTable::default());
    let end = now.saturating_add(Duration::from_secs(9));
    table.insert_new(Lease { holder: A, ..lease(5, end) }, LIMIT).unwrap();
    let unknown = |result: Result<(), Fault>| {
        let fault = result.unwrap_err();
        assert_eq!((fault.code, &*fault.subject), (FaultCode::NotFound, ""), "{fault}");
    };
    for holder in [B, Holder::Worker, Holder::ROOT] {
        for epoch in [0, 4, 5, u64::MAX] {
            unknown(table.find_for(ADDRESS, holder, epoch, now).map(drop));
            unknown(table.check_removable(ADDRESS, holder, false, epoch, now));
            let fault = table.insert_new(Lease { holder, ..lease(epoch, end) }, LIMIT).unwrap_err();
            assert_eq!(fault.code, FaultCode::InUse, "{fault}");
            assert!(!fault.message.contains('5') && *fault.subject == *A.to_string(), "{fault}");
        }
    }
    // Root is allowed to remove it, but not as an older owner; its epoch is not that of the lease.
    assert_eq!(code(table.check_removable(ADDRESS, Holder::ROOT, true, 4, now)), Some(FaultCode::Expired));
    table.check_removable(ADDRESS, Holder::ROOT, true, u64::MAX, now).unwrap();
    assert_eq!(table.find_for(ADDRESS, A, 5, now).unwrap().epoch, 5);
    table.remove(ADDRESS, true);
    unknown(table.find_for(ADDRESS, B, 0, end).map(drop));
}

#[test]
fn a_past_epoch_counts_for_its_holder_and_that_of_roots_removal_for_all() {
    let (now, mut table) = (BootTime::now(), LeaseTable::default());
    let end = now.saturating_add(Duration::from_secs(9));
    table.insert_new(Lease { holder: B, ..lease(u64::MAX, end) }, LIMIT).unwrap();
    table.remove(ADDRESS, false);
    table.insert_new(Lease { holder: A, ..lease(5, end) }, LIMIT).unwrap();
    table.remove(ADDRESS, false);
    table.remember_removal(ADDRESS, Holder::ROOT, 8);
    assert_eq!(code(table.insert_new(Lease { holder: A, ..lease(7, end) }, LIMIT)), Some(FaultCode::Expired));
    table.insert_new(Lease { holder: A, ..lease(8, end) }, LIMIT).unwrap();
    table.remove(ADDRESS, false);
    assert_eq!(code(table.insert_new(Lease { holder: B, ..lease(8, end) }, LIMIT)), Some(FaultCode::Expired));
}

#[test]
fn a_follower_of_another_holder_is_not_one() {
    let (now, mut table) = (BootTime::now(), LeaseTable::default());
    let other = IpAddr::from([192, 0, 2, 2]);
    table.insert(Lease { holder: A, ..lease(0, now) });
    let placement = Placement { address: other, index: 1, prefix: 32 };
    table.insert(Lease { holder: B, placement, follows: Some(ADDRESS), ..lease(0, now) });
    assert!(table.followers_of(ADDRESS).is_empty() && table.leader_of(other).is_none());
    table.remove(other, false);
    table.insert(Lease { holder: A, placement, follows: Some(ADDRESS), ..lease(0, now) });
    assert_eq!((table.followers_of(ADDRESS), table.leader_of(other)), (vec![other], Some(ADDRESS)));
}

#[test]
fn each_holder_has_its_own_quota_and_a_removal_frees_it() {
    let (mut table, two) = (LeaseTable::default(), Limit { max: 2, ..LIMIT });
    let enter = |table: &mut LeaseTable, last: u8, holder: Holder| {
        let address = IpAddr::from([192, 0, 2, last]);
        let placement = Placement { address, index: 1, prefix: 32 };
        table.insert_new(Lease { placement, holder, ..lease(0, BootTime::now()) }, two)
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
fn restores_are_limited_per_minute() {
    let (begin, mut lease) = (Instant::now(), lease(0, BootTime::now()));
    let at = |seconds: u64| begin + Duration::from_secs(seconds);
    let restored: Vec<u64> = (0..150).filter(|second| lease.try_restore(at(*second), 3)).collect();
    assert_eq!(restored, [0, 1, 2, 60, 61, 62, 120, 121, 122]);
    assert!(!lease.try_restore(at(300), 0));
}

#[test]
fn the_lifetime_in_the_kernel_exceeds_the_lease_by_rounding_only() {
    let now = BootTime::now();
    for (remaining, exact, rounded) in [(9_999, 9, 10), (9_949, 9, 9), (1_000, 1, 1), (949, 1, 1), (0, 1, 1)]
    {
        let end = now.saturating_add(Duration::from_millis(remaining));
        assert_eq!(kernel_seconds(Some(end), now, Duration::ZERO), Some(exact), "{remaining}");
        assert_eq!(kernel_seconds(Some(end), now, ROUNDING), Some(rounded), "{remaining}");
        assert_eq!(lease(0, end).is_ending(now), remaining < 1_000);
    }
    assert_eq!(kernel_seconds(None, now, ROUNDING), None);
    assert!(!Lease { deadline: None, ..lease(0, now) }.is_ending(now));
}
