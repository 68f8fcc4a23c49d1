// Shows text classification with a BERT from TorchScript. Sentences are padded to the longest of their batch only, and
// batches hold sentences of similar length. The loss weighs a sentence by its tokens: within a batch here, and over the
// batches of an update by Batch::weight.
// Run: build/release/examples/10_bert [MODEL.pt]
//      MODEL.pt comes from 10_export_bert.py, with the weights of an uncased English BERT if it is asked for them.
//      Without it examples/models/bert.pt serves, a skeleton whose weights are drawn here.
// Last line: accuracy …; … % of all positions were padding
#include <iostream>
#include <map>
#include <random>
#include <sstream>

#include <torch/torch.h>
#include <torchbus/torchbus.hpp>

#include "models/initialise.hpp"

/// Of BERT's uncased vocabulary.
const std::map<std::string, std::int64_t> kVocabulary = {
    {"[CLS]", 101}, {"[SEP]", 102}, {"the", 1996}, {"was", 2001}, {"not", 2025}, {"very", 2200}, {"and", 1998}, {"film", 2143}, {"story", 2466},
    {"music", 2189}, {"cast", 3459}, {"plot", 5436}, {"long", 2146}, {"short", 2460}, {"old", 2214}, {"new", 2047}, {"slow", 4030}, {"loud", 5189},
    {"good", 2204}, {"great", 2307}, {"fine", 2986}, {"superb", 21688}, {"bad", 2919}, {"poor", 3532}, {"awful", 9643}, {"dull", 10634}};

/// Sentences such as "the cast was old and the film was not very good", each with one opinion: praise is 1, blame 0.
class Reviews final : public torchbus::ItemDataset {
public:
    Reviews(std::int64_t count, unsigned seed) : ItemDataset(torchbus::collate_padded()), generator_(seed) {
        while (size() < count) add();
    }
    std::int64_t size() const override { return static_cast<std::int64_t>(items_.size()); }
    torchbus::Item get(std::int64_t index, std::uint64_t) const override { return items_[static_cast<std::size_t>(index)]; }
    std::vector<std::int64_t> lengths() const {
        std::vector<std::int64_t> lengths;
        for (const auto& item : items_) lengths.push_back(item.input.size(0));
        return lengths;
    }

private:
    std::string one_of(const std::vector<std::string>& words) { return words[generator_() % words.size()]; }
    void add() {
        const bool good = generator_() % 2, negated = generator_() % 3 == 0;
        const auto clauses = 1 + generator_() % 4, opinion = generator_() % clauses;
        std::vector<std::int64_t> tokens;
        std::string text = "[CLS]";
        for (unsigned clause = 0; clause < clauses; ++clause) {
            text += (clause ? " and the " : " the ") + one_of({"film", "story", "music", "cast", "plot"}) + " was ";
            if (clause == opinion && negated) text += "not ";
            text += one_of({"", "very "});
            text += clause != opinion ? one_of({"long", "short", "old", "new", "slow", "loud"})
                    : good            ? one_of({"good", "great", "fine", "superb"})
                                      : one_of({"bad", "poor", "awful", "dull"});
        }
        for (std::istringstream words(text + " [SEP]"); words >> text;) tokens.push_back(kVocabulary.at(text));
        items_.push_back({.input = torch::tensor(tokens), .target = torch::tensor(static_cast<std::int64_t>(good != negated))});
    }
    std::mt19937 generator_;
    std::vector<torchbus::Item> items_;
};

at::Tensor loss_by_tokens(const torchbus::Output& output, const torchbus::Batch& batch) {
    const auto of_each = torch::nn::functional::cross_entropy(output.tensor, batch.targets, torch::nn::functional::CrossEntropyFuncOptions().reduction(torch::kNone));
    return (of_each * *batch.extras.find("length")).sum() / batch.weight;
}

int main(int argc, char** argv) {
    torch::manual_seed(0);
    const auto train = std::make_shared<Reviews>(2048, 1), test = std::make_shared<Reviews>(512, 2);
    const torchbus::Model model = torchbus::load_torchscript(argc > 1 ? argv[1] : "examples/models/bert.pt", {.arguments = {"inputs", "length"}});
    const bool random = initialise(model, 0.02);

    std::int64_t positions = 0, tokens = 0;
    torchbus::Trainer trainer({
        .model = model,
        .loss = loss_by_tokens,
        .optimizer = torchbus::make_adamw(parameters_of(model), {.learning_rate = random ? 5e-4 : 1e-4, .weight_decay = 0.01}),
        .callbacks = {torchbus::make_metrics({.accuracy = true}), torchbus::make_gradient_accumulation({.micro_batches = 2}),
                      torchbus::make_gradient_clipping({.max_norm = 1.0}), torchbus::make_learning_rate_schedule({torchbus::make_linear_schedule({.warmup = "0.1run"})}),
                      torchbus::FunctionCallback("padding").on<torchbus::ForwardStart>(torchbus::Stage::Observe, [&](const torchbus::ForwardStart& event) {
                          positions += event.batch.inputs.numel();
                          tokens += event.batch.tokens;
                      }, torchbus::in(torchbus::Mode::Train)),
                      torchbus::make_progress_lines()},
        .seed = 0,
    });
    trainer.train(train, test, {.epochs = 4, .batch_size = 16, .sampler = torchbus::make_length_bucket_sampler(train->lengths(), 16)});

    std::cout << "accuracy " << trainer.history().latest("eval.accuracy").value() << "; "
              << 100.0 * static_cast<double>(positions - tokens) / static_cast<double>(positions) << " % of all positions were padding\n";
}
