#!/usr/bin/env bash
# Three stages on real speech: data -> pretrain -> SFT -> DPO -> evaluate -> export -> one table and a page.
#   bash scripts/quickstart.sh            # real voice prompts, five languages (Debian packages, fetched without root)
#   bash scripts/quickstart.sh data=tts   # second choice, where apt-get is not available: synthesised speech
# Running it again resumes where it stopped and skips what is done. Everything goes to data/ and runs/quickstart/.
started=$(date +%s)
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

corpus=asterisk
for argument in "$@"; do
  case "$argument" in
    data=asterisk) corpus=asterisk ;;
    data=tts) corpus=tts ;;
    -h | --help) sed -n '2,5s/^# //p' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) stop "unknown argument '$argument'; known: data=asterisk (default), data=tts." ;;
  esac
done

RUN=runs/quickstart
mkdir -p "$RUN/.steps" data
if [ -f "$RUN/.corpus" ] && [ "$(cat "$RUN/.corpus")" != "$corpus" ]; then
  stop "$RUN was made with data=$(cat "$RUN/.corpus"); move it away to run with data=$corpus."
fi
echo "$corpus" >"$RUN/.corpus"
# Two processes' worth of threads would fight over two cores.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(nproc)}" TRANSFORMERS_VERBOSITY=error PYTHONWARNINGS=ignore

number=0
step() { # step NAME COMMAND...: runs once; its wall seconds are kept
  local name=$1 begin
  shift
  number=$((number + 1))
  if [ -f "$RUN/.steps/$name" ]; then
    echo "== [$number/14] $name: done before ($(cat "$RUN/.steps/$name") s)"
    return
  fi
  echo "== [$number/14] $name"
  begin=$(date +%s.%N)
  "$@" || stop "step '$name' failed (above); the same command goes on from here once it is mended."
  printf '%.1f' "$(echo "$(date +%s.%N) $begin" | awk '{print $1 - $2}')" >"$RUN/.steps/$name"
}
evaluate() { # evaluate STAGE FORM [more settings]
  local stage=$1 form=$2
  shift 2
  python recipes/evaluate.py experiment=quickstart/evaluate "evaluation.name=$stage" "evaluation.form=$form" \
    "evaluation.pretrain_set=data/${corpus}_pretrain_test" "evaluation.output=$RUN/evaluation/$stage" "$@"
}
train_on() { echo "data.train=data/${corpus}_$1_train"; }

if [ "$corpus" = asterisk ]; then
  command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null ||
    stop "apt-get and dpkg-deb are needed to fetch the voice prompts; without them run: bash scripts/quickstart.sh data=tts"
  # Sized for minutes: one clip in twenty is longer than 10 s and takes a quarter of the time; and a small model learns
  # to listen from transcripts, so not every possible translation is made.
  step data python -m data_prep.asterisk_prompts --output data --max-seconds 10 --translate-share 0.4
else
  step data python -m data_prep.tts --output data
fi
step chat_data python -m data_prep.chat_from_transcripts --input "data/${corpus}_pretrain_train" --output data
step preference_data python -m data_prep.preference_pairs --input "data/${corpus}_pretrain_train" --output data
step preference_test python -m data_prep.preference_pairs --input "data/${corpus}_pretrain_test" --output data

step pretrain python recipes/pretrain.py experiment=quickstart/pretrain "$(train_on pretrain)"
step sft python recipes/sft.py experiment=quickstart/sft "$(train_on chat)"
step dpo python recipes/dpo.py experiment=quickstart/dpo "$(train_on preference)"

step evaluate_untrained evaluate untrained completion model.start_from=$RUN/pretrain/initial
step evaluate_pretrain evaluate pretrain completion model.start_from=$RUN/pretrain/final
step evaluate_sft evaluate sft chat model.start_from=$RUN/sft/final
step evaluate_dpo evaluate dpo chat model.start_from=$RUN/dpo/final "evaluation.preference_set=data/${corpus}_preference_test" \
  evaluation.reference=$RUN/sft/final
step whisper_base python scripts/whisper_reference.py --set "data/${corpus}_pretrain_test" --output $RUN/evaluation/whisper_base

step export python recipes/export.py export.stage=$RUN/dpo/final export.output=$RUN/export "export.verify_set=data/${corpus}_pretrain_test"
step report python scripts/quickstart_report.py --run $RUN --corpus "$corpus"

python scripts/quickstart_report.py --run $RUN --corpus "$corpus" --show
echo "Wall time of this call: $(($(date +%s) - started)) s"
