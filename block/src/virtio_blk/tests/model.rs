//! A disk against a model of it.

use super::*;
use proptest::prelude::*;

/// Cuts a length into pieces, some of them empty.
fn cuts() -> impl Strategy<Value = Vec<u32>> {
    proptest::collection::vec(prop_oneof![Just(1), 1..20_u32, 1..2000_u32], 0..7)
}

#[derive(Clone, Debug)]
enum Step {
    Write { sector: u64, sectors: u64, seed: usize },
    Read { sector: u64, sectors: u64 },
    Zero { sector: u64, sectors: u32, unmap: bool },
    Flush,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..130_u64, 0..9_u64, 0..250_usize).prop_map(|(sector, sectors, seed)| Step::Write {
            sector,
            sectors,
            seed
        }),
        (0..130_u64, 0..9_u64).prop_map(|(sector, sectors)| Step::Read { sector, sectors }),
        (0..130_u64, 0..40_u32, any::<bool>()).prop_map(|(sector, sectors, unmap)| Step::Zero {
            sector,
            sectors,
            unmap
        }),
        Just(Step::Flush),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// A disk is an array of bytes, however requests are cut into descriptors, and still is when opened anew.
    #[test]
    fn a_disk_is_an_array_of_bytes(
        steps in proptest::collection::vec((step(), cuts(), cuts(), any::<bool>()), 1..40),
        engine in 0..2_usize,
        layout in 0..4_usize,
        write_back in any::<bool>(),
    ) {
        let size = 128 * 512;
        let file = TempFile::new(size as u64);
        let mut model = vec![0; size];
        let options = BlockOptions { write_back, ..options() };
        let mut rig = Rig::new(image(&file, ENGINES[engine]), options, layouts()[layout]);
        for (step, readable, writable, indirect) in steps {
            let place = |sector: u64, sectors: u64| {
                let (start, end) = (sector as usize * 512, (sector + sectors) as usize * 512);
                (end <= size).then_some(start..end)
            };
            let (wanted, expected) = match step {
                Step::Write { sector, sectors, seed } => {
                    let data = pattern(sectors as usize * 512, seed);
                    let place = place(sector, sectors);
                    if let Some(place) = place.clone() {
                        model[place].copy_from_slice(&data);
                    }
                    (Wanted::new(OUT, sector).data(&data), place.map(|_| vec![]))
                }
                Step::Read { sector, sectors } => {
                    let expected = place(sector, sectors).map(|place| model[place].to_vec());
                    (Wanted::new(IN, sector).room(sectors as u32 * 512), expected)
                }
                Step::Zero { sector, sectors, unmap } => {
                    let place = place(sector, sectors.into());
                    if let Some(place) = place.clone() {
                        model[place].fill(0);
                    }
                    let data = range(sector, sectors, u32::from(unmap));
                    (Wanted::new(WRITE_ZEROES_KIND, 0).data(&data), place.map(|_| vec![]))
                }
                Step::Flush => (Wanted::new(FLUSH_KIND, 0), Some(vec![])),
            };
            let mut wanted = wanted.cut(readable, writable);
            if indirect {
                wanted = wanted.indirect();
            }
            let answer = rig.request(wanted);
            match expected {
                Some(data) => {
                    prop_assert_eq!(answer.status, OK);
                    prop_assert!(answer.data == data);
                }
                None => prop_assert_eq!(answer.status, IOERR),
            }
        }
        drop(rig);
        prop_assert!(fs::read(file.path()).unwrap() == model);
    }
}
