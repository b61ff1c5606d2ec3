//! Each trick by several users and a member of a group at the same time.

use portreeve_tests::adversary::scene::{Amid, Scene, users};
use portreeve_tests::adversary::trick;
use portreeve_tests::{exclusive, for_each_trick, isolated};

macro_rules! tests {
    ($($kind:ident { $($name:ident: $module:ident :: $trick:ident,)* })*) => {
        $($(
            #[test]
            fn $name() {
                $kind(|host| {
                    let name = stringify!($name);
                    let violations = Scene::start(host).play(name, trick(name), &users(), Amid::Nothing);
                    assert!(violations.is_empty());
                });
            }
        )*)*
    };
}
for_each_trick!(tests);
