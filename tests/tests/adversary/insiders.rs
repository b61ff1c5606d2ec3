//! The same tricks by the worker and by root's own client, and every trick amid takeovers and reloads.

use portreeve_tests::adversary::scene::{Amid, Scene, users};
use portreeve_tests::adversary::tricks::idle::Idle;
use portreeve_tests::adversary::{Everything, Who};
use portreeve_tests::{exclusive, isolated};

/// The scene itself, without a trick.
#[test]
fn peers_that_do_nothing_violate_nothing() {
    isolated(|host| {
        let mut scene = Scene::start(host);
        let mut violations = Vec::new();
        for amid in [Amid::Nothing, Amid::Reload, Amid::Takeover] {
            violations.extend(scene.play("no trick", &Idle, &users(), amid));
        }
        violations.extend(scene.play("no trick", &Idle, &[Who::Worker, Who::Root], Amid::Nothing));
        assert!(violations.is_empty());
    });
}

#[test]
fn a_hostile_worker_harms_nobody() {
    isolated(|host| {
        let violations = Scene::start(host).play_all(&[Who::Worker]);
        assert!(violations.is_empty());
    });
}

#[test]
fn a_client_of_root_that_misbehaves_harms_nobody() {
    isolated(|host| {
        let violations = Scene::start(host).play_all(&[Who::Root]);
        assert!(violations.is_empty());
    });
}

#[test]
fn takeovers_and_reloads_amid_every_trick_harm_nobody() {
    isolated(|host| {
        let mut scene = Scene::start(host);
        let mut violations = Vec::new();
        for amid in [Amid::Reload, Amid::Takeover, Amid::Reload, Amid::Takeover] {
            let everything = Everything { exclusive: false };
            violations.extend(scene.play("every trick", &everything, &users(), amid));
        }
        assert!(violations.is_empty());
    });
}

#[test]
fn a_takeover_amid_unread_descriptors_harms_nobody() {
    exclusive(|host| {
        let (mut scene, everything) = (Scene::start(host), Everything { exclusive: true });
        let everybody: Vec<Who> = users().into_iter().chain([Who::Worker]).collect();
        let mut violations = scene.play("every trick", &everything, &everybody, Amid::Nothing);
        violations.extend(scene.play("every trick", &everything, &users(), Amid::Takeover));
        assert!(violations.is_empty());
    });
}
