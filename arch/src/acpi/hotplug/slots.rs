//! What the objects of CPUs and of memory have in common: a controller with numbered slots.

use super::{DEVICE_CHECK, EJECT_REQUEST, Encoded, FOREVER};
use acpi_tables::Aml;
use acpi_tables::aml::{
    Acquire, Add, And, Arg, Else, Equal, If, LessThan, Local, Method, MethodCall, Name, Notify, ONE, Path,
    Release, Return, Store, While, ZERO,
};

// Bits of the status register.
const PRESENT: u8 = 1 << 0;
const CAME: u8 = 1 << 1;
const GOING: u8 = 1 << 2;
const EJECT: u8 = 1 << 3;

/// `_STA`: present, enabled, shown, working.
const STATUS_WORKING: u8 = 0xf;
/// What the register of the next slot reads as when there is none.
const NONE: u32 = u32::MAX;

/// A controller's names. Its objects are in the scope `scope` and begin with `letter`: the registers `_SEL` (selected
/// slot), `_STS` (status), `_NXT` (next with something to tell), `_EVT` and `_OUT`, and the mutex `_LCK`, where `_` is the
/// letter.
pub(super) struct Names {
    pub(super) scope: &'static str,
    pub(super) letter: char,
    /// What `_STA` says of an empty slot.
    pub(super) status_absent: u8,
}

impl Names {
    /// An object of the controller, as its own objects name it.
    pub(super) fn of(&self, rest: &str) -> Path {
        Path::new(&format!("{}{rest}", self.letter))
    }

    pub(super) fn slot(&self, number: u32) -> Path {
        self.of(&format!("{number:03X}"))
    }

    pub(super) fn acquire(&self) -> Acquire {
        Acquire::new(self.of("LCK"), FOREVER)
    }

    pub(super) fn release(&self) -> Release {
        Release::new(self.of("LCK"))
    }

    /// A method that selects the slot in its first argument, does `body` and returns `result`.
    pub(super) fn method(
        &self,
        name: &str,
        arguments: u8,
        body: &[&dyn Aml],
        result: Option<&dyn Aml>,
    ) -> Encoded {
        let (acquire, release) = (self.acquire(), self.release());
        let select = self.of("SEL");
        let (number, returned);
        let mut children: Vec<&dyn Aml> = vec![&acquire];
        number = Arg(0);
        let chosen = Store::new(&select, &number);
        children.push(&chosen);
        children.extend_from_slice(body);
        children.push(&release);
        if let Some(result) = result {
            returned = Return::new(result);
            children.push(&returned);
        }
        let mut out = Encoded::default();
        out.push(&Method::new(self.of(name), arguments, true, children));
        out
    }

    /// The methods of a controller of `count` slots: `_SCN` tells what there is to tell, `_STA`, `_EJE` and `_OST` serve
    /// the slots' methods of almost that name.
    pub(super) fn methods(&self, count: u32) -> Encoded {
        let mut out = Encoded::default();
        let (status, event, outcome) = (self.of("STS"), self.of("EVT"), self.of("OUT"));
        let (value, answer) = (Local(0), Local(1));

        let is_present = And::new(&ZERO, &value, &PRESENT);
        out.push(&self.method(
            "STA",
            1,
            &[
                &Store::new(&value, &status),
                &Store::new(&answer, &self.status_absent),
                &If::new(&is_present, vec![&Store::new(&answer, &STATUS_WORKING)]),
            ],
            Some(&answer),
        ));
        out.push(&self.method("EJE", 1, &[&Store::new(&status, &EJECT)], None));
        let (happened, went) = (Arg(1), Arg(2));
        let report = Encoded::of(&[&Store::new(&event, &happened), &Store::new(&outcome, &went)]);
        out.push(&self.method("OST", 3, &[&report], None));

        let (chosen, notification) = (Arg(0), Arg(1));
        let mut notify = Encoded::default();
        for number in 0..count {
            let is_it = Equal::new(&chosen, &number);
            notify.push(&If::new(&is_it, vec![&Notify::new(&self.slot(number), &notification)]));
        }
        out.push(&Method::new(self.of("NTF"), 2, true, vec![&notify]));
        out.push(&self.scan(count));
        out
    }

    /// `_SCN`, for a controller of `count` slots: tells what there is to tell, of each slot at most once.
    fn scan(&self, count: u32) -> Encoded {
        let (select, status, next) = (self.of("SEL"), self.of("STS"), self.of("NXT"));
        let (number, news, turn) = (Local(0), Local(1), Local(2));
        let (came, going) = (And::new(&ZERO, &news, &CAME), And::new(&ZERO, &news, &GOING));
        let tell = |notification| MethodCall::new(self.of("NTF"), vec![&number, notification]);
        let (tell_came, tell_going) = (tell(&DEVICE_CHECK), tell(&EJECT_REQUEST));
        let told = CAME | GOING;
        let tell = Encoded::of(&[
            &Store::new(&select, &number),
            // What is told now is not told again.
            &And::new(&news, &status, &told),
            &Store::new(&status, &news),
            &If::new(&came, vec![&tell_came]),
            &If::new(&going, vec![&tell_going]),
        ]);
        let turns = Encoded::of(&[
            &Add::new(&turn, &turn, &ONE),
            &Store::new(&number, &next),
            &If::new(&Equal::new(&number, &NONE), vec![&Store::new(&turn, &count)]),
            &Else::new(vec![&tell]),
        ]);
        let body = Encoded::of(&[
            &self.acquire(),
            &Store::new(&turn, &ZERO),
            &While::new(&LessThan::new(&turn, &count), vec![&turns]),
            &self.release(),
        ]);
        Encoded::of(&[&Method::new(self.of("SCN"), 0, true, vec![&body])])
    }

    /// What every slot's object has: `_UID`, `_STA`, `_OST`, and `_EJ0` if what is in it can be let go.
    pub(super) fn slot_objects(&self, number: u32, ejectable: bool) -> Encoded {
        let mut out = Encoded::default();
        // Found in the scope around the object, which is the controller's.
        let call = |name, arguments| MethodCall::new(self.of(name), arguments);
        out.push(&Name::new("_UID".into(), &number));
        out.push(&Method::new("_STA".into(), 0, true, vec![&Return::new(&call("STA", vec![&number]))]));
        let report = call("OST", vec![&number, &Arg(0), &Arg(1)]);
        out.push(&Method::new("_OST".into(), 3, true, vec![&report]));
        if ejectable {
            out.push(&Method::new("_EJ0".into(), 1, true, vec![&call("EJE", vec![&number])]));
        }
        out
    }
}
