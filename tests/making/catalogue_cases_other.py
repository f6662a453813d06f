"""Folders in the published layouts of ultrasound, dermoscopy and microscopy: what must be found, by hand."""

from __future__ import annotations

from catalogue_trees import Case, box, cremi, excel, medmnist, voc

CASES: dict[str, Case] = {
    "breast-lesions-usg": Case(
        """
        BrEaST-Lesions_USG-images_and_masks-Dec-15-2023/case001.png
        BrEaST-Lesions_USG-images_and_masks-Dec-15-2023/case001_tumor.png
        BrEaST-Lesions_USG-images_and_masks-Dec-15-2023/case002.png
        BrEaST-Lesions_USG-images_and_masks-Dec-15-2023/case002_tumor.png
        BrEaST-Lesions_USG-images_and_masks-Dec-15-2023/case002_other1.png
        BrEaST-Lesions_USG-images_and_masks-Dec-15-2023/case003.png
        """,
        {
            "BrEaST-Lesions_USG-images_and_masks-Dec-15-2023/case001.png": {
                "label": "malignant",
                "group": 1,
                "mask": "BrEaST-Lesions_USG-images_and_masks-Dec-15-2023/case001_tumor.png",
            },
            "BrEaST-Lesions_USG-images_and_masks-Dec-15-2023/case002.png": {
                "label": "benign",
                "group": 2,
                "mask": "BrEaST-Lesions_USG-images_and_masks-Dec-15-2023/case002_tumor.png",
                "mask_other": "BrEaST-Lesions_USG-images_and_masks-Dec-15-2023/case002_other1.png",
            },
            "BrEaST-Lesions_USG-images_and_masks-Dec-15-2023/case003.png": {"label": "normal", "group": 3},
        },
        {
            "BrEaST-Lesions-USG-clinical-data-Dec-15-2023.xlsx": excel(
                ["CaseID", "Image_filename", "Mask_tumor_filename", "Classification"],
                [1, "case001.png", "case001_tumor.png", "malignant"],
                [2, "case002.png", "case002_tumor.png", "benign"],
                [3, "case003.png", None, "normal"],
            )
        },
    ),
    "fetal-planes-db": Case(
        """
        FETAL_PLANES_ZENODO/Images/Patient01791_Plane1_1_of_15.png
        FETAL_PLANES_ZENODO/Images/Patient01791_Plane5_1_of_1.png
        FETAL_PLANES_ZENODO/Images/Patient00001_Plane3_1_of_2.png
        """,
        {
            "FETAL_PLANES_ZENODO/Images/Patient01791_Plane1_1_of_15.png": {
                "label": "Other",
                "split": "train",
                "group": 1791,
            },
            "FETAL_PLANES_ZENODO/Images/Patient01791_Plane5_1_of_1.png": {
                "label": "Maternal cervix",
                "split": "train",
                "group": 1791,
            },
            "FETAL_PLANES_ZENODO/Images/Patient00001_Plane3_1_of_2.png": {
                "label": "Fetal brain",
                "split": "test",
                "group": 1,
            },
        },
        {
            "FETAL_PLANES_ZENODO/FETAL_PLANES_DB_data.csv": "Image_name;Patient_num;Plane;"
            "Brain_plane;Operator;US_Machine;Train \n"
            "Patient01791_Plane1_1_of_15;1791;Other;Not A Brain;Other;Aloka;1\n"
            "Patient01791_Plane5_1_of_1;1791;Maternal cervix;Not A Brain;Other;Aloka;1\n"
            "Patient00001_Plane3_1_of_2;1;Fetal brain;Trans-thalamic;Op. 1;Voluson E6;0\n"
        },
    ),
    "tn3k": Case(
        """
        tn3k/trainval-image/0000.jpg
        tn3k/trainval-mask/0000.jpg
        tn3k/test-image/0000.jpg
        tn3k/test-mask/0000.jpg
        tn3k/tn3k-trainval-fold0.json
        tn3k/label4trainval.csv
        """,
        {
            "tn3k/trainval-image/0000.jpg": {"split": "train", "mask": "tn3k/trainval-mask/0000.jpg"},
            "tn3k/test-image/0000.jpg": {"split": "test", "mask": "tn3k/test-mask/0000.jpg"},
        },
    ),
    "breastmnist": Case(
        "",
        {
            # two sizes: the larger one is taken
            "breastmnist_128.npz#train_images[0]": {"split": "train", "label": "normal, benign"},
            "breastmnist_128.npz#val_images[0]": {"split": "val", "label": "malignant"},
            "breastmnist_128.npz#test_images[0]": {"split": "test", "label": "malignant"},
        },
        {
            "breastmnist_64.npz": medmnist(64, 2, (1, 1, 1), [[0], [0], [0]]),
            "breastmnist_128.npz": medmnist(128, 2, (1, 1, 1), [[1], [0], [0]]),
        },
    ),
    "busi": Case(
        """
        Dataset_BUSI_with_GT/benign/benign (1).png
        Dataset_BUSI_with_GT/benign/benign (1)_mask.png
        Dataset_BUSI_with_GT/benign/benign (1)_mask_1.png
        Dataset_BUSI_with_GT/normal/normal (12).png
        """,
        {
            "Dataset_BUSI_with_GT/benign/benign (1).png": {
                "label": "benign",
                "mask": "Dataset_BUSI_with_GT/benign/benign (1)_mask.png",
            },
            "Dataset_BUSI_with_GT/normal/normal (12).png": {"label": "normal"},
        },
    ),
    "isic2019": Case(
        """
        ISIC_2019_Training_Input/ISIC_2019_Training_Input/ISIC_0000022_downsampled.jpg
        ISIC_2019_Training_Input/ISIC_2019_Training_Input/ISIC_0053453.jpg
        ISIC_2019_Training_Input/ISIC_2019_Training_Input/ISIC_0053454.jpg
        ISIC_2019_Test_Input/ISIC_0034321.jpg
        """,
        {
            "ISIC_2019_Training_Input/ISIC_2019_Training_Input/ISIC_0000022_downsampled.jpg": {
                "split": "train",
                "label": "MEL",
            },
            "ISIC_2019_Training_Input/ISIC_2019_Training_Input/ISIC_0053453.jpg": {
                "split": "train",
                "label": "NV",
                "group": 1,
            },
            "ISIC_2019_Training_Input/ISIC_2019_Training_Input/ISIC_0053454.jpg": {
                "split": "train",
                "label": "NV",
                "group": 1,
            },
            "ISIC_2019_Test_Input/ISIC_0034321.jpg": {"split": "test"},
        },
        {
            "ISIC_2019_Training_GroundTruth.csv": "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK\n"
            "ISIC_0000022_downsampled,1.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0\n"
            "ISIC_0053453,0.0,1.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0\nISIC_0053454,0.0,1.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0\n",
            "ISIC_2019_Training_Metadata.csv": "image,age_approx,anatom_site_general,lesion_id,sex\n"
            "ISIC_0000022_downsampled,55,torso,,female\nISIC_0053453,60,torso,IL_1,male\n"
            "ISIC_0053454,60,torso,IL_1,male\n",
        },
    ),
    "isic2018-task1": Case(
        """
        ISIC2018_Task1-2_Training_Input/ISIC_0000000.jpg
        ISIC2018_Task1_Training_GroundTruth/ISIC_0000000_segmentation.png
        ISIC2018_Task1-2_Test_Input/ISIC_0012255.jpg
        ISIC2018_Task1_Test_GroundTruth/ISIC_0012255_segmentation.png
        """,
        {
            "ISIC2018_Task1-2_Training_Input/ISIC_0000000.jpg": {
                "split": "train",
                "mask": "ISIC2018_Task1_Training_GroundTruth/ISIC_0000000_segmentation.png",
            },
            "ISIC2018_Task1-2_Test_Input/ISIC_0012255.jpg": {
                "split": "test",
                "mask": "ISIC2018_Task1_Test_GroundTruth/ISIC_0012255_segmentation.png",
            },
        },
    ),
    "private-dermoscopy": Case("a/one.png\nb/two.JPG", {"a/one.png": {}, "b/two.JPG": {}}),
    "cremi": Case(
        "",
        {
            **{
                f"sample_A_20160501.hdf#volumes/raw[{i}]": {
                    "group": "A",
                    "mask": f"sample_A_20160501.hdf#volumes/labels/neuron_ids[{i}]",
                    "mask_clefts": f"sample_A_20160501.hdf#volumes/labels/clefts[{i}]",
                }
                for i in range(3)
            },
            "sample_B_20160501.hdf#volumes/raw[0]": {
                "group": "B",
                "mask": "sample_B_20160501.hdf#volumes/labels/neuron_ids[0]",
                "mask_clefts": "sample_B_20160501.hdf#volumes/labels/clefts[0]",
            },
        },
        {"sample_A_20160501.hdf": cremi(3, 3), "sample_B_20160501.hdf": cremi(1, 1)},
    ),
    "bccd": Case(
        "BCCD/JPEGImages/BloodImage_00000.jpg\nBCCD/JPEGImages/BloodImage_00001.jpg\n"
        "BCCD/JPEGImages/BloodImage_00002.jpg",
        {
            "BCCD/JPEGImages/BloodImage_00000.jpg": {
                "split": "test",
                "boxes": [box("WBC", 1, 2, 30, 40), box("RBC", 5, 5, 9, 9)],
            },
            "BCCD/JPEGImages/BloodImage_00001.jpg": {"split": "train", "boxes": []},
            "BCCD/JPEGImages/BloodImage_00002.jpg": {"split": "val", "boxes": [box("Platelets", 0, 0, 3, 3)]},
        },
        {
            "BCCD/Annotations/BloodImage_00000.xml": voc(640, 480, ("WBC", 1, 2, 30, 40), ("RBC", 5, 5, 9, 9)),
            "BCCD/Annotations/BloodImage_00001.xml": voc(640, 480, ("RBC", 5, 5, 5, 5)),
            "BCCD/Annotations/BloodImage_00002.xml": voc(640, 480, ("Platelets", 0, 0, 3, 3)),
            "BCCD/ImageSets/Main/train.txt": "BloodImage_00001\n",
            "BCCD/ImageSets/Main/val.txt": "BloodImage_00002\n",
            "BCCD/ImageSets/Main/test.txt": "BloodImage_00000\n",
        },
    ),
}
